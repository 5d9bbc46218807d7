"""W8A8: the scale of the paper, the choice by error, and what it costs a trained model."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.linears import find_linears
from engines.passes.integer_matmul import lower_integer_matmul
from engines.quantization import smoothquant
from engines.quantization.kv_cache import largest_entries, quantize_kv_cache
from engines.quantization.smoothquant import keep_float, quantize_w8a8, smoothing_scale
from serving.contract import INPUT_IDS
from tests.engines.passes.graphs import operators, run
from tests.engines.quantization.trained import Trained, load_trained


def test_the_scale_is_that_of_the_paper() -> None:
    largest = np.float32([8, 0, 2, 1])
    weights = [np.float32([[1, 5, 0, -4]]), np.float32([[-2, 1, 0, 3]])]
    got = smoothing_scale(largest, weights, 0.75)
    # max|x| ** alpha / max|w| ** (1 - alpha), and 1 for channels that are never used.
    np.testing.assert_allclose(got, [8**0.75 / 2**0.25, 1, 1, 1 / 4**0.25], rtol=1e-6)


def test_the_largest_errors_stay_float_within_their_share() -> None:
    errors = {"a": 0.004, "b": 0.5, "c": 0.002, "d": 0.3}
    # b alone is more than a quarter of the multiplications, d and a fit.
    assert keep_float(errors, {"a": 10, "b": 50, "c": 60, "d": 20}) == ["d", "a"]
    assert keep_float(errors, {"a": 10, "b": 10, "c": 60, "d": 20}) == ["b", "a"]


MASSIVE = 7  # a token


def two_layers() -> ir.Model:
    """Two linear layers of embeddings; one token has a number in the first beyond all others."""
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> ir.Value:
        array = random.standard_normal(shape, np.float32)
        if name == "small.table":
            array[MASSIVE] *= 3000
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(shape), const_value=tensor)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return value

    ids = ir.Value(
        name=INPUT_IDS, shape=ir.Shape(["batch", "n"]), type=ir.TensorType(ir.DataType.INT64)
    )
    nodes, constants = [], []
    for name, width in (("small", 16), ("large", 64)):
        constants += [constant(f"{name}.table", 32, 16), constant(f"{name}.weight", 16, width)]
        for operator, inputs, columns in (
            ("Gather", [constants[-2], ids], 16),
            ("MatMul", [None, constants[-1]], width),
        ):
            inputs = [nodes[-1].outputs[0] if each is None else each for each in inputs]
            nodes.append(ir.node(operator, inputs, name=f"{name}/{operator}"))
            output = nodes[-1].outputs[0]
            output.name, output.shape = (
                f"{name}/{operator}/output",
                ir.Shape(["batch", "n", columns]),
            )
            output.type = ir.TensorType(ir.DataType.FLOAT)
    outputs = [node.outputs[0] for node in nodes if node.op_type == "MatMul"]
    graph = ir.Graph([ids], outputs, nodes=nodes, initializers=constants, opset_imports={"": 24})
    return ir.Model(graph, ir_version=11)


def test_a_token_beyond_all_others_leaves_the_others_their_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = [np.random.default_rng(seed).permutation(32) for seed in range(6)]
    ids = np.delete(np.arange(32), MASSIVE)[None]
    (expected,) = run(two_layers(), {INPUT_IDS: ids}, "small/MatMul/output").values()
    errors = []
    for limit in (smoothquant.LARGEST_ERROR, np.inf):
        monkeypatch.setattr(smoothquant, "LARGEST_ERROR", limit)
        model = two_layers()
        small, large = quantize_w8a8(model, windows, tmp_path, head=True)
        assert (small.is_float, large.is_float) == (limit < 1, False)
        (got,) = run(model, {INPUT_IDS: ids}, "small/MatMul/output").values()
        errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    # GPTQ fits the weights to all tokens, of which the large one counts most.
    assert errors[0] < 0.1 < 0.5 < errors[1]


@pytest.fixture(scope="module")
def trained(trained_checkpoint: Path) -> Trained:
    return load_trained(trained_checkpoint)


class TestTrained:
    def test_within_one_percent_and_better_than_without_smoothing(
        self, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        divergences = []
        monkeypatch.setattr(smoothquant, "LARGEST_ERROR", np.inf)
        for alphas in (smoothquant.ALPHAS, ()):
            monkeypatch.setattr(smoothquant, "ALPHAS", alphas)
            model = trained.graph.clone()
            quantize_w8a8(model, list(trained.calibration), tmp_path)
            lower_integer_matmul(model)
            assert operators(model)["MatMulIntegerToFloat"] == 28  # all but the tied head
            quality = trained.quality(model, tmp_path)
            assert quality.perplexity_increase < 0.01
            divergences.append(quality.mean_kl)
        smoothed, unsmoothed = divergences
        assert smoothed < unsmoothed

    def test_an_int8_cache_is_within_half_a_percent(self, trained: Trained, tmp_path: Path) -> None:
        model = trained.graph.clone()
        quantize_kv_cache(model, largest_entries(model, list(trained.calibration), tmp_path))
        quality = trained.quality(model, tmp_path)
        assert abs(quality.perplexity_increase) < 0.005
        assert quality.mean_kl < 1e-3

    def test_every_weight_and_every_source_is_quantised(
        self, trained: Trained, tmp_path: Path
    ) -> None:
        model = trained.graph.clone()
        choices = quantize_w8a8(model, list(trained.calibration[:1]), tmp_path)
        linears = list(find_linears(model))
        assert all(linear.weight.dtype == ir.DataType.INT8 for linear in linears)
        pairs = {
            linear.name.removesuffix(".integers")
            for linear in linears
            if linear.source.producer().op_type[:2] == "De"
        }
        assert pairs == {name for choice in choices for name in choice.weights}
        assert len(pairs) == len(linears) - 1  # all but the head
