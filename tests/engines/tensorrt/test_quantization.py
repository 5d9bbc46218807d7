"""The verifier finds every way in which integers may have been lost: each is tried."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from engines.initializers import add_initializer
from engines.quantization.kv_cache import quantize_kv_cache
from engines.quantization.weight_only import quantizable_weights, quantize_weights
from engines.quantization.weights import WeightScheme
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend
from engines.tensorrt.quantization import verify_size
from engines.tensorrt.tensors import VerificationError
from engines.tensorrt.verifier import verify
from tests.engines.tensorrt.decoder_graph import CAUSAL, DIM, KV_HEADS, decoder
from tests.engines.tensorrt.test_network import CAPACITY, parsed
from tests.engines.tensorrt.test_verifier import put_behind

pytest.importorskip("tensorrt_rtx")
HEAD = "head/DequantizeLinear/turned/DequantizeLinear#1"
SCHEMES = {"int8": WeightScheme(8), "int4": WeightScheme(4, 32)}


def quantized(scheme: WeightScheme) -> ir.Model:
    """A lowered decoder with integer weights and an int8 cache."""
    model = decoder(CAUSAL, dtype="float16")
    quantize_weights(model, dict.fromkeys(quantizable_weights(model), scheme))
    largest = np.ones((KV_HEADS, DIM), np.float32)
    quantize_kv_cache(model, {f"past_key_values.0.{part}": largest for part in ("key", "value")})
    lower(model, CAPACITY)
    return model


def network_of(model: ir.Model) -> Network:
    network = parsed(model)
    mend(network, model)
    return network


def layer_of(network: Network, output: str) -> Any:
    layers = map(network.definition.get_layer, range(network.definition.num_layers))
    return next(layer for layer in layers if output in (layer.name, layer.get_output(0).name))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_quantised_network_is_right(scheme: WeightScheme) -> None:
    model = quantized(scheme)
    verify(network_of(model), model)


def other_integers(network: Network) -> None:
    other = layer_of(network, "value0_weight.integers.turned").get_output(0)
    layer_of(network, "key0_weight/DequantizeLinear/turned/DequantizeLinear#1:0").set_input(
        0, other
    )


def scales_from_elsewhere(network: Network) -> None:
    dequantize = layer_of(network, f"{HEAD}:0")
    half = network.library.DataType.HALF
    cast = network.definition.add_cast(dequantize.get_input(1), half)
    dequantize.set_input(1, cast.get_output(0))


def other_axis(network: Network) -> None:
    layer = layer_of(network, f"{HEAD}:0")
    layer.__class__ = network.library.IDequantizeLayer
    layer.axis = 0


def another_layer_in_its_place(network: Network) -> None:
    floats = layer_of(network, f"{HEAD}:0").get_output(0)
    name, floats.name = floats.name, "computed"
    network.definition.add_identity(floats).get_output(0).name = name


def other_past(network: Network) -> None:
    for part, other in (("key", "value"), ("value", "key")):
        past = network.tensors[f"past_key_values.0.{other}"]
        layer_of(network, f"present.0.{part}").set_input(2, past)


def cache_behind_the_selection(network: Network) -> None:
    selection = layer_of(network, "present.0.key")
    put_behind(network, selection, "present.0.key", network.definition.add_identity)


def cache_written_anywhere(network: Network) -> None:
    anywhere = np.ones((1, 1, CAPACITY, 1), np.bool_)
    constant = network.definition.add_constant(anywhere.shape, anywhere)
    layer_of(network, "present.0.key").set_input(0, constant.get_output(0))


def old_entries_twice(network: Network) -> None:
    past = network.tensors["past_key_values.0.key"]
    layer_of(network, "present.0.key").set_input(1, past)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_integers, "is 'value0_weight.integers.turned', not 'key0_weight"),
        (scales_from_elsewhere, "the scale of .* is not constant"),
        (other_axis, "has scales along axis 0, not 1"),
        (another_layer_in_its_place, f"DequantizeLinear '{HEAD}' has no layer"),
        (other_past, "updates 'past_key_values.0.value' to 'present.0.key'"),
        (cache_behind_the_selection, "isn't updated by a selection"),
        (cache_written_anywhere, "the condition of .* don't depend on past_lengths"),
        (old_entries_twice, "the new entries of .* don't depend on past_lengths"),
    ],
)
def test_a_changed_network_is_refused(change: Callable[[Network], None], said: str) -> None:
    model = quantized(SCHEMES["int8"])
    network = network_of(model)
    change(network)
    with pytest.raises(VerificationError, match=said):
        verify(network, model)


def test_a_cache_of_any_capacity() -> None:
    model = quantized(SCHEMES["int8"])
    (past,) = (value for value in model.graph.inputs if value.name == "past_key_values.0.key")
    past.shape = ir.Shape(["b", KV_HEADS, "capacity", DIM])
    with pytest.raises(VerificationError, match="has no fixed capacity"):
        verify(network_of(model), model)


def test_a_weight_that_became_floats() -> None:
    model = quantized(SCHEMES["int8"])
    floats = decoder(CAUSAL, dtype="float16")
    quantize_kv_cache(
        floats,
        {f"past_key_values.0.{p}": np.ones((KV_HEADS, DIM), np.float32) for p in ("key", "value")},
    )
    lower(floats, CAPACITY)
    with pytest.raises(VerificationError, match=r"DequantizeLinear '.*' has no layer"):
        verify(network_of(floats), model)


def test_another_type_of_integers() -> None:
    model = quantized(SCHEMES["int8"])
    network = network_of(model)
    (node,) = (node for node in model.graph if node.name == HEAD)
    four = add_initializer(model.graph, "four", np.zeros((64, 32), "int4"))
    node.replace_input_with(0, four)
    with pytest.raises(VerificationError, match="is of type INT8, not INT4"):
        verify(network, model)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_an_engine_that_is_too_large(tmp_path: Path, scheme: WeightScheme) -> None:
    model = quantized(scheme)
    engine = tmp_path / "engine"
    with engine.open("wb") as file:
        file.truncate(64_000_000)
    verify_size(engine, model)
    with engine.open("wb") as file:
        file.truncate(65_000_000)
    with pytest.raises(VerificationError, match="takes 65 MB for weights of 0 MB"):
        verify_size(engine, model)
    verify_size(engine, decoder(CAUSAL))
