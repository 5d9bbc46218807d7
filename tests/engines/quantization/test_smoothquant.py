"""W8A8: the scale of the paper, the choice by error, and what it costs a trained model."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.linears import find_linears
from engines.passes.integer_matmul import lower_integer_matmul
from engines.quantization import smoothquant
from engines.quantization.kv_cache import largest_entries, quantize_kv_cache
from engines.quantization.smoothquant import quantize_w8a8, smoothing_scale
from tests.engines.passes.graphs import operators
from tests.engines.quantization.trained import Trained, load_trained


def test_the_scale_is_that_of_the_paper() -> None:
    largest = np.float32([8, 0, 2, 1])
    weights = [np.float32([[1, 5, 0, -4]]), np.float32([[-2, 1, 0, 3]])]
    got = smoothing_scale(largest, weights, 0.75)
    # max|x| ** alpha / max|w| ** (1 - alpha), and 1 for channels that are never used.
    np.testing.assert_allclose(got, [8**0.75 / 2**0.25, 1, 1, 1 / 4**0.25], rtol=1e-6)


@pytest.fixture(scope="module")
def trained(trained_checkpoint: Path) -> Trained:
    return load_trained(trained_checkpoint)


class TestTrained:
    def test_within_one_percent_and_better_than_one_alpha_for_all(
        self, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        divergences = []
        everything = (smoothquant.ALPHAS, smoothquant.RANGES)
        for alphas, ranges in (everything, ((0.5,), (1.0,)), ((), (1.0,))):
            monkeypatch.setattr(smoothquant, "ALPHAS", alphas)
            monkeypatch.setattr(smoothquant, "RANGES", ranges)
            model = trained.graph.clone()
            quantize_w8a8(model, list(trained.calibration), tmp_path)
            lower_integer_matmul(model)
            assert operators(model)["MatMulIntegerToFloat"] == 28  # all but the tied head
            quality = trained.quality(model, tmp_path)
            assert quality.perplexity_increase < 0.01
            divergences.append(quality.mean_kl)
        chosen, paper, unsmoothed = divergences
        assert chosen < paper < unsmoothed

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
