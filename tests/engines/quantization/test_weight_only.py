"""Weight-only quantisation of whole graphs: what is quantised, exactly how, and what it costs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from engines.calibration import collect
from engines.linears import find_linears
from engines.quantization import weight_only
from engines.quantization.awq import search_scale
from engines.quantization.clipping import round_clipped
from engines.quantization.smoothing import fold_input_scale
from engines.quantization.weight_only import (
    CalibrationText,
    Method,
    check_group_sizes,
    fitting_group_sizes,
    quantizable_weights,
    quantize_weights,
    vocabulary_weights,
)
from engines.quantization.weights import WeightScheme
from serving.errors import UserError
from tests.engines.passes.graphs import run
from tests.engines.passes.small_graphs import graph, random
from tests.engines.quantization.decoders import logits
from tests.engines.quantization.trained import Trained, load_trained

METHODS: list[Method] = ["round-to-nearest", "awq", "gptq"]
SCHEMES = [WeightScheme(8), WeightScheme(4, 32), WeightScheme(4, 64, symmetric=False)]
Decoder = Callable[..., ir.Model]


def random_text(workspace: Path) -> CalibrationText:
    random = np.random.default_rng(6)
    return CalibrationText([random.integers(3, 500, 40) for _ in range(3)], workspace)


def by_reference(node: ir.Node) -> np.ndarray:
    """What ONNX's own evaluator makes of a DequantizeLinear node."""
    tensors = [ir.to_proto(value.const_value) for value in node.inputs]
    for tensor, value in zip(tensors, node.inputs, strict=True):
        tensor.name = value.name
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    proto = ir.to_proto(node)
    proto.output[0] = "y"
    graph = helper.make_graph([proto], "g", [], [output], tensors)
    imports = [helper.make_opsetid("", 24)]
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=imports)).run(None, {})[0]


def by_hand(model: ir.Model, name: str) -> np.ndarray:
    """(integers - zeros) * scales, group by group."""

    def array(part: str) -> np.ndarray:
        value = model.graph.initializers[f"{name}.{part}"]
        return value.const_value.numpy().astype(np.float32)

    integers, scales = array("integers"), array("scales")
    has_zeros = f"{name}.zero_points" in model.graph.initializers
    zeros = array("zero_points") if has_zeros else np.zeros_like(scales)
    scales, zeros = scales.reshape(len(integers), -1), zeros.reshape(len(integers), -1)
    size = integers.shape[1] // scales.shape[1]
    result = np.empty_like(integers)
    for column in range(integers.shape[1]):
        group = column // size
        result[:, column] = (integers[:, column] - zeros[:, group]) * scales[:, group]
    return result


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_graph_computes_with_the_dequantised_weights(
    architecture: str, method: Method, scheme: WeightScheme, decoder: Decoder, tmp_path: Path
) -> None:
    model = decoder(architecture)
    names = quantizable_weights(model)
    original = logits(model)
    quantize_weights(model, dict.fromkeys(names, scheme), method, random_text(tmp_path))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert not names.keys() & model.graph.initializers.keys()

    dequantizers = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(dequantizers) == len(names)
    # The same graph with each DequantizeLinear's value, computed apart, in its place.
    plain = model.clone()
    for node in dequantizers:
        name = node.name.removesuffix("/DequantizeLinear")
        expected = by_hand(model, name)
        np.testing.assert_allclose(by_reference(node), expected, rtol=1e-6)
        twin = next(other for other in plain.graph if other.name == node.name)
        value = ir.Value(
            name=name, shape=ir.Shape(expected.shape), const_value=ir.tensor(expected, name=name)
        )
        plain.graph.register_initializer(value)
        twin.outputs[0].replace_all_uses_with(value)
    got = logits(model)
    np.testing.assert_allclose(got, logits(plain), atol=1e-5 * np.abs(got).max())
    error = np.abs(got - original).mean() / np.abs(original).mean()
    assert error < (0.05 if scheme.bits == 8 else 0.7)  # random weights spread errors


def test_what_is_quantised(decoder: Decoder) -> None:
    llama, gpt2 = decoder("llama"), decoder("gpt2")
    assert len(quantizable_weights(llama)) == 2 * 4 + 2
    assert quantizable_weights(llama)["model.layers.1.mlp.down_proj.weight"] == 128
    assert vocabulary_weights(llama) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert len(quantizable_weights(gpt2)) == 2 * 4 + 1  # the table of positions isn't
    assert vocabulary_weights(gpt2) == {"lm_head.weight"}


@pytest.mark.parametrize("method", METHODS)
def test_a_tied_weight_is_stored_once(method: Method, decoder: Decoder, tmp_path: Path) -> None:
    model = decoder("gpt2")
    quantize_weights(model, {"lm_head.weight": WeightScheme(8)}, method, random_text(tmp_path))
    (node,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    assert {use.node.op_type for use in node.outputs[0].uses()} == {"Gather", "Transpose"}
    left = [linear for linear in find_linears(model) if linear.dequantize is None]
    assert len(left) == 8


def test_a_weight_of_two_layers_is_stored_once() -> None:
    body = "t = Transpose <perm=[1,0]> (w) y = MatMul(x, t) u = MatMul(y, r) logits = MatMul(u, t)"
    text = f"agraph (float[2,3,4] x) => (float[2,3,6] logits) {{ {body} }}"
    model = graph(text, {"w": random(6, 4), "r": random(6, 4, seed=1)})
    quantize_weights(model, {"w": WeightScheme(8)})
    assert set(model.graph.initializers) == {"w.integers", "w.scales", "r"}
    x = random(2, 3, 4, seed=2)
    dequantized = by_hand(model, "w")
    hidden = x @ dequantized.T @ model.graph.initializers["r"].const_value.numpy()
    expected = hidden @ dequantized.T
    np.testing.assert_allclose(run(model, {"x": x})["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_make_no_difference(
    method: Method, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for chunk in (1 << 22, 1000):
        monkeypatch.setattr(weight_only, "_CHUNK", chunk)
        model = decoder("gpt2")
        schemes = dict.fromkeys(quantizable_weights(model), WeightScheme(4, 32, symmetric=False))
        quantize_weights(model, schemes, method, random_text(tmp_path))
        results.append(logits(model))
    np.testing.assert_allclose(*results, atol=1e-5)


def test_a_small_budget_makes_no_difference(decoder: Decoder, tmp_path: Path) -> None:
    """Later layers see the activations of the float model, whatever is quantised already."""
    results = []
    for budget in (1, 1 << 30):
        model = decoder("llama")
        schemes = dict.fromkeys(quantizable_weights(model), WeightScheme(4, 32))
        windows = random_text(tmp_path).windows
        quantize_weights(model, schemes, "awq", CalibrationText(windows, tmp_path, budget))
        results.append(logits(model))
    np.testing.assert_allclose(*results, atol=1e-5)


def test_ranges_are_clipped_for_the_activations_after_scaling(
    decoder: Decoder, tmp_path: Path
) -> None:
    """As if the graph had been scaled first and then run on the text again."""
    model, scaled, scheme = decoder("llama"), decoder("llama"), WeightScheme(4, 32)
    name, text = "model.layers.0.mlp.down_proj.weight", random_text(tmp_path)
    quantize_weights(model, {name: scheme}, "awq", text)

    linear = next(linear for linear in find_linears(scaled) if linear.name == name)
    seen = collect(scaled, text.windows, tmp_path, second_moments=True)[name]
    scale = search_scale([(linear.array(), scheme)], seen)
    assert scale is not None
    fold_input_scale(scaled, [linear], scale)
    seen = collect(scaled, text.windows, tmp_path, second_moments=True)[name]
    expected = round_clipped(linear.array(), scheme, seen.second_moment)
    got = model.graph.initializers[f"{name}.integers"].const_value.numpy().astype(np.int8)
    assert (got == expected.integers).mean() > 0.999  # the sums differ in their last bits


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite(number: float, decoder: Decoder) -> None:
    model = decoder("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    weight = model.graph.initializers[name]
    array = weight.const_value.numpy().copy()
    array[3, 4] = number
    weight.const_value = ir.tensor(array, name=name)
    before = [node.name for node in model.graph]
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight .* NaN or infinite"):
        quantize_weights(model, dict.fromkeys(quantizable_weights(model), WeightScheme(8)))
    assert [node.name for node in model.graph] == before


def test_groups_that_do_not_divide(decoder: Decoder) -> None:
    inputs = {"a": 192, "b": 448, "c": 96}
    check_group_sizes(inputs, dict.fromkeys(inputs, WeightScheme(4, 32)))
    check_group_sizes(inputs, {"b": WeightScheme(4, 64), "c": WeightScheme(8)})
    assert fitting_group_sizes(list(inputs.values())) == [16, 32]
    message = "A group size of 64 doesn't divide the 96 inputs of c: choose of 16, 32."
    with pytest.raises(UserError, match=message):
        check_group_sizes(inputs, dict.fromkeys(inputs, WeightScheme(4, 64)))
    with pytest.raises(UserError, match="50 inputs of d: quantise to 8 bits without groups"):
        check_group_sizes({"d": 50}, {"d": WeightScheme(4, 64)})
    model = decoder("llama")
    with pytest.raises(UserError, match=r"size of 128 .* 64 inputs of model\.layers\.0"):
        quantize_weights(model, dict.fromkeys(quantizable_weights(model), WeightScheme(4, 128)))
    assert all(node.op_type != "DequantizeLinear" for node in model.graph)


@pytest.fixture(scope="module")
def trained(trained_checkpoint: Path) -> Trained:
    return load_trained(trained_checkpoint)


class TestTrained:
    """Perplexity and KL divergence of the trained checkpoint on held-out text."""

    def costs(
        self, trained: Trained, scheme: WeightScheme, method: Method, workspace: Path
    ) -> tuple[float, float]:
        """The increase of perplexity, as a fraction, and the KL divergence in nats."""
        model = trained.graph.clone()
        schemes = dict.fromkeys(quantizable_weights(model), scheme)
        text = CalibrationText(list(trained.calibration), workspace)
        quantize_weights(model, schemes, method, text)
        got = log_softmax(logits(model, trained.held_out))[:, :-1]
        expected = log_softmax(np.stack(trained.logits))[:, :-1]
        following = trained.held_out[:, 1:, None]
        loss = np.take_along_axis(expected - got, following, axis=2).mean()
        divergence = (np.exp(expected) * (expected - got)).sum(axis=2).mean()
        return float(np.expm1(loss)), float(divergence)

    @pytest.mark.parametrize("group_size", [None, 64])
    def test_8_bits(self, group_size: int | None, trained: Trained, tmp_path: Path) -> None:
        scheme = WeightScheme(8, group_size)
        increase, _ = self.costs(trained, scheme, "round-to-nearest", tmp_path)
        assert abs(increase) < 0.005

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_4_bits(self, symmetric: bool, trained: Trained, tmp_path: Path) -> None:
        scheme = WeightScheme(4, 32, symmetric)
        _, nearest = self.costs(trained, scheme, "round-to-nearest", tmp_path)
        for method, share in (("awq", 0.95), ("gptq", 0.8)):
            increase, divergence = self.costs(trained, scheme, method, tmp_path)
            assert increase < 0.03
            assert divergence < share * nearest


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
