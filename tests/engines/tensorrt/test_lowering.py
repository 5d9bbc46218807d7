"""The passes for TensorRT keep the numbers, and leave what TensorRT takes."""

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines.passes.causal_masks import mask_causal_attention
from engines.passes.explicit_attention import spell_out_attention
from engines.passes.fixed_capacity import fix_capacity
from engines.passes.scaled_queries import scale_queries
from engines.tensorrt.lowering import lower
from tests.engines.tensorrt.decoder_graph import (
    CAPPED,
    CAPPED_WINDOW,
    CAUSAL,
    WINDOW,
    Layer,
    decoder,
    run,
)

CAPACITY = 16
LAYERS = {"causal": CAUSAL, "window": WINDOW, "capped": CAPPED, "capped window": CAPPED_WINDOW}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention"]


def assert_same_numbers(before: ir.Model, after: ir.Model, tolerance: float) -> None:
    for expected, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance)


def test_capacity_is_fixed_and_the_other_axes_stay_free() -> None:
    model = decoder(CAUSAL)
    fix_capacity(model, 24)
    shapes = {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
    assert shapes == {
        "input_ids": "[batch,sequence]",
        "past_lengths": "[batch]",
        "logits_positions": "[batch,positions]",
        "past_key_values.0.key": "[batch,2,24,16]",
        "past_key_values.0.value": "[batch,2,24,16]",
        "logits": "[batch,positions,32]",
        "present.0.key": "[batch,2,24,16]",
        "present.0.value": "[batch,2,24,16]",
    }


@every_layer
def test_scaled_queries_keep_the_numbers(layer: Layer) -> None:
    before, after = decoder(layer), decoder(layer)
    scale_queries(after)
    assert [node.attributes.get_float("scale") for node in attentions(after)] == [1.0]
    assert_same_numbers(before, after, 1e-5)


def test_scale_of_a_half_precision_model_is_not_rounded() -> None:
    model = decoder(CAUSAL, dtype="float16")
    scale_queries(model)
    (attention,) = attentions(model)
    cast = attention.inputs[0].producer()
    product = cast.inputs[0].producer()
    assert (cast.op_type, product.op_type) == ("Cast", "Mul")
    assert product.inputs[1].dtype == ir.DataType.FLOAT


def test_masks_keep_the_numbers() -> None:
    before, after = decoder(CAUSAL, WINDOW, CAUSAL), decoder(CAUSAL, WINDOW, CAUSAL)
    fix_capacity(after, CAPACITY)
    mask_causal_attention(after)
    first, window, last = attentions(after)
    assert first.inputs[3] is last.inputs[3]
    assert window.inputs[3].name == "window_mask"
    assert all("is_causal" not in node.attributes for node in attentions(after))
    assert all(len(node.inputs) == 4 for node in attentions(after))
    assert_same_numbers(before, after, 1e-5)


def test_causal_attention_without_lengths_is_refused() -> None:
    model = decoder(CAUSAL)
    (node,) = attentions(model)
    node.resize_inputs(3)
    with pytest.raises(ValueError, match="attention with a mask of an unknown kind"):
        mask_causal_attention(model)


@pytest.mark.parametrize("layer", [CAPPED, CAPPED_WINDOW], ids=["causal", "window"])
def test_softcap_in_primitives_keeps_the_numbers(layer: Layer) -> None:
    before, after = decoder(layer), decoder(layer)
    scale_queries(after)
    fix_capacity(after, CAPACITY)
    mask_causal_attention(after)
    spell_out_attention(after)
    assert not attentions(after)
    assert_same_numbers(before, after, 1e-5)


def test_attention_without_softcap_is_left_alone() -> None:
    model = decoder(CAUSAL, CAPPED, WINDOW)
    scale_queries(model)
    fix_capacity(model, CAPACITY)
    mask_causal_attention(model)
    spell_out_attention(model)
    assert [node.name for node in attentions(model)] == ["layers.0/Attention", "layers.2/Attention"]


def attention_alone(mask_type: int, value_dim: int = 8, softcap: float = 2.0) -> ir.Model:
    """Attention over six keys with a scale of 1 and a mask, and an Identity behind it."""
    shapes = {
        "query": [1, 4, 2, 8],
        "key": [1, 2, 6, 8],
        "value": [1, 2, 6, value_dim],
    }
    seen = helper.make_tensor_value_info("seen", TensorProto.FLOAT, [1, 4, 2, value_dim])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4, 2, value_dim])
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    inputs.append(helper.make_tensor_value_info("mask", mask_type, [1, 1, 2, 6]))
    nodes = [
        helper.make_node(
            "Attention", [*shapes, "mask"], ["seen"], "attention", scale=1.0, softcap=softcap
        ),
        helper.make_node("Identity", ["seen"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "attention", inputs, [output], value_info=[seen])
    opset = [helper.make_opsetid("", 24)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=11))


def run_alone(model: ir.Model, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.standard_normal(value.shape).astype(np.float32)
        for value in session.get_inputs()[:3]
    }
    return np.asarray(session.run(None, feeds | {"mask": mask})[0])


@pytest.mark.parametrize("mask_type", [TensorProto.BOOL, TensorProto.FLOAT])
def test_keys_and_values_of_different_size_keep_the_numbers(mask_type: int) -> None:
    before, after = (attention_alone(mask_type, value_dim=16, softcap=0.0) for _ in range(2))
    spell_out_attention(after)
    assert not attentions(after)
    mask = np.arange(12).reshape(1, 1, 2, 6) % 5
    typed = mask > 0 if mask_type == TensorProto.BOOL else mask.astype(np.float32)
    np.testing.assert_allclose(run_alone(after, typed), run_alone(before, typed), atol=1e-5)


def test_a_row_that_sees_nothing_is_finite() -> None:
    model = attention_alone(TensorProto.BOOL)
    spell_out_attention(model)
    assert np.isfinite(run_alone(model, np.zeros((1, 1, 2, 6), bool))).all()


def test_softcap_with_an_additive_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="attention: a soft cap with an additive mask"):
        spell_out_attention(attention_alone(TensorProto.FLOAT))


def test_lowering_keeps_the_numbers_and_adds_no_vendor_operator() -> None:
    layers = tuple(LAYERS.values())
    before, after = decoder(*layers), decoder(*layers)
    lower(after, CAPACITY)
    assert {node.domain for node in after.graph} == {""}
    assert_same_numbers(before, after, 1e-4)


def test_lowering_half_precision_keeps_the_numbers() -> None:
    before, after = decoder(CAUSAL, dtype="float16"), decoder(CAUSAL, dtype="float16")
    lower(after, CAPACITY)
    assert_same_numbers(before, after, 2e-2)


def test_lowering_twice_is_lowering_once() -> None:
    model = decoder(CAUSAL, CAPPED_WINDOW)
    lower(model, CAPACITY)
    once = copy.deepcopy(ir.to_proto(model))
    lower(model, CAPACITY)
    assert ir.to_proto(model) == once
