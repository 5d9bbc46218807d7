"""The verifier finds every way in which a network may differ from its graph: each is tried."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend
from engines.tensorrt.verifier import VerificationError, verify
from serving.bundle import DType
from tests.engines.tensorrt.decoder_graph import CAPPED_WINDOW, CAUSAL, WINDOW, decoder
from tests.engines.tensorrt.test_network import (
    CAPACITY,
    attention_of,
    mended,
    parsed,
    without_masks,
)

pytest.importorskip("tensorrt_rtx")
ATTENTION = "layers.0/Attention"

HALF = ir.DataType.FLOAT16

Change = Callable[[Network], None]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_mended_network_is_right(dtype: DType) -> None:
    verify(*mended(CAUSAL, WINDOW, CAPPED_WINDOW, dtype=dtype))


def test_a_network_that_was_not_mended() -> None:
    model = decoder(CAUSAL, dtype="float16")
    lower(model, CAPACITY)
    with pytest.raises(VerificationError, match=r"attention 'layers\.0/Attention' has the query"):
        verify(parsed(model), model)


def layer_of(network: Network, name: str, kind: str) -> Any:
    """The layer of this name, or with an output of it, as one of the library's layer classes."""
    layers = map(network.definition.get_layer, range(network.definition.num_layers))
    layer = next(layer for layer in layers if name in (layer.name, layer.get_output(0).name))
    layer.__class__ = getattr(network.library, kind)
    return layer


def put_behind(network: Network, layer: Any, output: str, add: Callable[[Any], Any]) -> None:
    """Let another layer, made by ``add``, give the network's output that ``layer`` gives."""
    computed = layer.get_output(0)
    network.definition.unmark_output(computed)
    computed.name = f"{output}/computed"
    result = add(computed).get_output(0)
    result.name = output
    network.definition.mark_output(result)
    network.tensors[output] = result


def kv_lengths(network: Network) -> None:
    int32 = network.library.DataType.INT32
    lengths = network.definition.add_cast(network.tensors["lengths"], int32)
    attention_of(network, ATTENTION).key_value_lengths = lengths.get_output(0)


def mask_without_the_past(network: Network) -> None:
    total = next(
        layer
        for layer in network.layers("ELEMENTWISE")
        if "past_lengths" in (layer.get_input(0).name, layer.get_input(1).name)
    )
    position = int(total.get_input(1).name == "past_lengths")
    total.set_input(position, total.get_input(1 - position))


def other_keys(network: Network) -> None:
    attention_of(network, ATTENTION).set_input(1, network.tensors["present.0.value"])


def decomposable(network: Network) -> None:
    attention_of(network, ATTENTION).decomposable = True


def head_in_float32(network: Network) -> None:
    float32, half = network.library.DataType.FLOAT, network.library.DataType.HALF
    head = layer_of(network, "lm_head/MatMul", "IMatrixMultiplyLayer")
    for position in (0, 1):
        wide = network.definition.add_cast(head.get_input(position), float32)
        head.set_input(position, wide.get_output(0))
    put_behind(network, head, "logits", lambda wide: network.definition.add_cast(wide, half))


def arithmetic_in_float32(network: Network) -> None:
    """By a layer that stands for no node."""
    library, definition = network.library, network.definition

    def absolute(rows: Any) -> Any:
        wide = definition.add_cast(rows, library.DataType.FLOAT).get_output(0)
        wide = definition.add_unary(wide, library.UnaryOperation.ABS).get_output(0)
        return definition.add_cast(wide, library.DataType.HALF)

    head = layer_of(network, "lm_head/MatMul", "IMatrixMultiplyLayer")
    put_behind(network, head, "logits", absolute)


def another_input(network: Network) -> None:
    network.definition.add_input("temperature", network.library.DataType.HALF, (1,))


def swapped_outputs(network: Network) -> None:
    key, value = network.tensors["present.0.key"], network.tensors["present.0.value"]
    key.name, value.name = "swapped", "present.0.key"
    key.name = "present.0.value"


def one_output_less(network: Network) -> None:
    network.definition.unmark_output(network.tensors["present.0.value"])


def other_shape(network: Network) -> None:
    network.tensors["past_key_values.0.key"].shape = (-1, 2, CAPACITY + 1, 16)


def other_write_positions(network: Network) -> None:
    int32 = network.library.DataType.INT32
    lengths = network.definition.add_cast(network.tensors["lengths"], int32)
    update = next(network.layers("KV_CACHE_UPDATE"))
    update.set_input(2, lengths.get_output(0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (kv_lengths, "has a causal kind or KV lengths"),
        (mask_without_the_past, "the mask of .* doesn't depend on past_lengths"),
        (head_in_float32, "the layer 'lm_head/MatMul' computes in float32, unasked"),
        (arithmetic_in_float32, r"the layer '.*Unary.*' computes in float32, unasked"),
        (another_input, "inputs temperature are not in both"),
        (other_keys, "has the key 'present.0.value', not 'present.0.key'"),
        (decomposable, "has decomposable = True"),
        (swapped_outputs, "'present.0.value', not"),
        (one_output_less, "outputs present.0.value are not in both"),
        (other_shape, "'past_key_values.0.key' has shape"),
        (other_write_positions, "doesn't write at past_lengths"),
    ],
)
def test_a_changed_network_is_refused(change: Change, said: str) -> None:
    network, model = mended(CAUSAL)
    change(network)
    with pytest.raises(VerificationError, match=said):
        verify(network, model)


def test_causal_attention_as_the_parser_leaves_it() -> None:
    network, (_, model) = without_masks(decoder(CAUSAL, dtype="float16")), mended(CAUSAL)
    attention = attention_of(network, ATTENTION)
    assert attention.causal_kind.name == "UPPER_LEFT"
    with pytest.raises(VerificationError, match="has a causal kind or KV lengths"):
        verify(network, model)
    attention.causal_kind = network.library.CausalMaskKind.NONE
    with pytest.raises(VerificationError, match="has no mask"):
        verify(network, model)


def test_another_mask() -> None:
    network, model = mended(WINDOW)
    attention_of(network, ATTENTION).mask = network.tensors["causal"]
    with pytest.raises(VerificationError, match="has mask 'causal', not 'window_mask'"):
        verify(network, model)


def test_a_mask_that_the_graph_has_not() -> None:
    network, model = mended(WINDOW)
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    node.replace_input_with(3, None)
    with pytest.raises(VerificationError, match="has no mask"):
        verify(network, model)


def test_a_cache_that_is_updated_to_no_output() -> None:
    network, model = mended(CAUSAL)
    one_output_less(network)
    outputs = model.graph.outputs
    outputs.remove(next(value for value in outputs if value.name == "present.0.value"))
    with pytest.raises(VerificationError, match=r"not to the output 'present\.0\.value'"):
        verify(network, model)


def test_another_type() -> None:
    network, model = mended(CAUSAL)
    (logits,) = (value for value in model.graph.outputs if value.name == "logits")
    logits.type = ir.TensorType(ir.DataType.FLOAT)
    with pytest.raises(VerificationError, match="'logits' is of type HALF, not FLOAT"):
        verify(network, model)


def test_a_scale_left_in_the_graph() -> None:
    network, model = mended(CAUSAL)
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    node.attributes["scale"] = ir.AttrFloat32("scale", 0.5)
    with pytest.raises(VerificationError, match="has a scale"):
        verify(network, model)


def test_an_input_that_nothing_uses() -> None:
    model = decoder(CAUSAL, dtype="float16")
    lower(model, CAPACITY)
    gather = next(node for node in model.graph if node.op_type == "GatherElements")
    ids = next(value for value in model.graph.inputs if value.name == "input_ids")
    column = next(node for node in model.graph if node.outputs[0].name == "column")
    column.replace_input_with(0, ids)
    assert gather.inputs[1] is not None
    network = parsed(model)
    mend(network, model)
    with pytest.raises(VerificationError, match="nothing uses the input logits_positions"):
        verify(network, model)


def test_a_cache_that_is_not_updated() -> None:
    model = decoder(CAUSAL, dtype="float16")
    lower(model, CAPACITY)
    update = next(node for node in model.graph if node.op_type == "TensorScatter")
    copy = ir.node("Identity", [update.inputs[0]], name="copy")
    model.graph.insert_before(update, [copy])
    present, made = update.outputs[0], copy.outputs[0]
    made.type, made.shape, made.name, present.name = present.type, present.shape, present.name, "x"
    present.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove(update, safe=True)
    network = parsed(model)
    mend(network, model)
    with pytest.raises(VerificationError, match=r"'past_key_values\.0\.key' is updated 0 times"):
        verify(network, model)


def test_an_input_that_the_contract_has_not() -> None:
    network, model = mended(CAUSAL)
    half = network.library.DataType.HALF
    temperature = network.definition.add_input("temperature", half, (1, 1, 1))
    scaled = network.definition.add_elementwise(
        network.tensors["rows"], temperature, network.library.ElementWiseOperation.PROD
    )
    layer_of(network, "lm_head/MatMul", "IMatrixMultiplyLayer").set_input(0, scaled.get_output(0))
    asked = ir.Shape([1, 1, 1])
    model.graph.inputs.append(ir.Value(name="temperature", shape=asked, type=ir.TensorType(HALF)))
    with pytest.raises(VerificationError, match="'temperature' is none of the contract's"):
        verify(network, model)


def test_attention_that_became_something_else() -> None:
    network, _ = mended(CAPPED_WINDOW)
    _, model = mended(WINDOW)
    with pytest.raises(VerificationError, match="attention 'seen0' is not in both"):
        verify(network, model)


def test_a_warning_of_the_parser() -> None:
    model = decoder(CAUSAL, dtype="float16")
    lower(model, CAPACITY)
    noise = ir.node("RandomUniformLike", [model.graph.inputs[0]], {"seed": 1.0, "dtype": HALF})
    model.graph.append(noise)
    network = parsed(model)
    mend(network, model)
    with pytest.raises(VerificationError, match=r"its parser warns \(.*ignores the \"seed\""):
        verify(network, model)
