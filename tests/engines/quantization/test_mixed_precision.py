"""Bits for each weight: the best choice under a budget, and better than 4 bits for all."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.linears import find_linears
from engines.quantization.mixed_precision import (
    assign_bits,
    average_bits,
    measure_sensitivities,
    weight_sizes,
)
from engines.quantization.qdq import quantize_initializer
from engines.quantization.weights import WeightScheme, round_to_nearest
from tests.engines.quantization.trained import Trained, load_trained

FOUR, EIGHT = WeightScheme(4, 32), WeightScheme(8)
BUDGETS = (4, 4.3, 4.5, 5, 6.2, 7.9, 8)


def instance(seed: int) -> tuple[dict[str, float], dict[str, int]]:
    """Seven weights of a model's usual sizes, whose sensitivities span two orders of magnitude."""
    random = np.random.default_rng(seed)
    names = [f"layer{index}" for index in range(7)]
    sizes = random.choice([128, 896, 4864], len(names)) * 128
    return (
        dict(zip(names, 10 ** random.uniform(-4, -2, len(names)), strict=True)),
        dict(zip(names, map(int, sizes), strict=True)),
    )


def cost(bits: Mapping[str, int], sensitivities: Mapping[str, float]) -> float:
    return sum(sensitivities[name] for name, count in bits.items() if count == 4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", BUDGETS)
def test_no_other_choice_within_the_budget_costs_less(seed: int, budget: float) -> None:
    sensitivities, sizes = instance(seed)
    choice = assign_bits(sensitivities, sizes, budget)
    assert average_bits(choice, sizes) <= budget + 1e-9
    every = (
        dict(zip(sizes, bits, strict=True)) for bits in itertools.product((4, 8), repeat=len(sizes))
    )
    least = min(cost(b, sensitivities) for b in every if average_bits(b, sizes) <= budget + 1e-9)
    assert cost(choice, sensitivities) == pytest.approx(least)


def test_more_bits_never_cost_more() -> None:
    sensitivities, sizes = instance(0)
    costs = [
        cost(assign_bits(sensitivities, sizes, b), sensitivities) for b in np.arange(4, 8, 0.1)
    ]
    assert costs == sorted(costs, reverse=True)


def test_sizes_without_a_common_divisor_respect_the_budget() -> None:
    random = np.random.default_rng(1)
    names = [f"layer{index}" for index in range(50)]
    sizes = {
        name: int(size) for name, size in zip(names, random.integers(1e6, 9e6, 50), strict=True)
    }
    sensitivities = {name: float(size) for name, size in sizes.items()}  # the spare bits fill up
    for budget in (4.5, 5.0, 6.5):
        bits = assign_bits(sensitivities, sizes, budget)
        assert budget - 0.01 < average_bits(bits, sizes) <= budget


def test_a_budget_below_four_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3\.9 bits is less"):
        assign_bits({"a": 1.0}, {"a": 8}, 3.9)


def quantized(graph: ir.Model, bits: Mapping[str, int]) -> ir.Model:
    model = graph.clone()
    for linear in {linear.name: linear for linear in find_linears(model)}.values():
        weight = round_to_nearest(linear.array(), FOUR if bits[linear.name] == 4 else EIGHT)
        quantize_initializer(model, linear.weight, weight, transposed=linear.transposed)
    return model


@pytest.fixture(scope="module")
def trained(trained_checkpoint: Path) -> Trained:
    return load_trained(trained_checkpoint)


class TestTrained:
    def test_sensitivity_is_what_the_weight_alone_costs(
        self, trained: Trained, sensitivities: dict[str, float], tmp_path: Path
    ) -> None:
        """Measured again by replacing one weight in the graph, on the same text."""
        assert sensitivities.keys() == weight_sizes(trained.graph).keys()
        for name in ("model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
            model = trained.graph.clone()
            weight = model.graph.initializers[name]
            array = weight.const_value.numpy()
            groups = array.reshape(len(array), -1, 32)
            high = np.maximum(groups.max(axis=2), 0) / 7
            scales = np.maximum(high, -np.minimum(groups.min(axis=2), 0) / 8)[..., None]
            rounded = np.clip(np.rint(groups / scales), -8, 7) * scales
            weight.const_value = ir.tensor(rounded.reshape(array.shape).astype(np.float32))
            expected = trained.quality(model, tmp_path).mean_kl
            assert sensitivities[name] == pytest.approx(expected, rel=0.02)

    def test_half_a_bit_more_lowers_the_divergence(
        self, trained: Trained, sensitivities: dict[str, float], tmp_path: Path
    ) -> None:
        sizes = weight_sizes(trained.graph)
        divergences = []
        for budget in (4, 4.5):
            bits = assign_bits(sensitivities, sizes, budget)
            model = quantized(trained.graph, bits)
            divergences.append(trained.quality(model, tmp_path).mean_kl)
        assert divergences[1] < 0.9 * divergences[0]


@pytest.fixture(scope="module")
def sensitivities(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    workspace = tmp_path_factory.mktemp("sensitivities")
    return measure_sensitivities(trained.graph, FOUR, list(trained.held_out), workspace)
