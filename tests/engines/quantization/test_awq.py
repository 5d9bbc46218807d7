"""AWQ's searches, against brute force over the activations themselves."""

import itertools

import numpy as np
import pytest

from engines.calibration import InputStatistics
from engines.quantization.awq import search_scale
from engines.quantization.clipping import clipped_parameters, round_clipped
from engines.quantization.weights import WeightScheme, group_parameters, round_to_nearest

INPUTS, OUTPUTS, TOKENS = 64, 24, 300
SCHEMES = [WeightScheme(4, 32), WeightScheme(4, 32, symmetric=False), WeightScheme(4)]


def problem() -> tuple[np.ndarray, np.ndarray]:
    """A weight [out, in] and inputs [tokens, in] with a few channels of large magnitude."""
    random = np.random.default_rng(7)
    inputs = random.standard_normal((TOKENS, INPUTS)).astype(np.float32)
    inputs[:, [3, 17, 40]] *= 30
    return random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32), inputs


def statistics(inputs: np.ndarray) -> InputStatistics:
    magnitude = np.abs(inputs)
    return InputStatistics(
        len(inputs), magnitude.mean(axis=0), magnitude.max(axis=0), inputs.T @ inputs
    )


def rounded(numbers: np.ndarray, scheme: WeightScheme, shrink: float = 1.0) -> np.ndarray:
    """Round one group to nearest, its range shrunk; written apart from the package."""
    low, high = scheme.lowest, scheme.highest
    if scheme.symmetric:
        step, zero = max(numbers.max() / high, numbers.min() / low), 0.0
    else:
        least, most = min(numbers.min(), 0), max(numbers.max(), 0)
        step = (most - least) / (high - low)
        zero = np.round(low - least / step)
    step = step * shrink
    return (np.clip(np.round(numbers / step + zero), low, high) - zero) * step


def output_error(weight: np.ndarray, got: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.square(inputs @ (got - weight).T).sum())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_scale_is_the_best_power_of_the_magnitudes(scheme: WeightScheme) -> None:
    weight, inputs = problem()
    found = search_scale([(weight, scheme)], statistics(inputs))
    assert found is not None
    magnitude = np.abs(inputs).mean(axis=0)
    size = scheme.group_size or INPUTS
    errors = []
    for exponent in np.arange(0, 1.01, 0.05):
        scaled = weight * magnitude**exponent
        groups = scaled.reshape(OUTPUTS, -1, size)
        got = np.array([[rounded(group, scheme) for group in row] for row in groups])
        errors.append(output_error(weight, got.reshape(weight.shape) / magnitude**exponent, inputs))
    best = magnitude ** (0.05 * int(np.argmin(errors)))
    np.testing.assert_allclose(found / found[0], best / best[0], rtol=1e-4)
    assert min(errors) < 0.7 * errors[0]


def test_layers_of_one_source_are_searched_together() -> None:
    weight, inputs = problem()
    scheme = WeightScheme(4, 32)
    seen = statistics(inputs)
    together = search_scale([(weight[:10], scheme), (weight[10:], scheme)], seen)
    np.testing.assert_array_equal(together, search_scale([(weight, scheme)], seen))


def test_no_scale_where_none_helps() -> None:
    weight, inputs = problem()
    assert search_scale([(weight, WeightScheme(8))], statistics(np.ones_like(inputs))) is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_range_is_clipped_where_its_error_is_least(scheme: WeightScheme) -> None:
    weight, inputs = problem()
    moment = inputs.T @ inputs
    got, _ = clipped_parameters(weight, scheme, moment)
    full, _ = group_parameters(weight, scheme)
    size = scheme.group_size or INPUTS
    for row, group in itertools.product(range(OUTPUTS), range(INPUTS // size)):
        columns = slice(group * size, (group + 1) * size)
        numbers, seen = weight[row, columns], inputs[:, columns]
        ratios = np.linspace(1, 0.5, 11)
        errors = [
            np.square(seen @ (rounded(numbers, scheme, ratio) - numbers)).sum() for ratio in ratios
        ]
        chosen = float(got[row, group] / full[row, group])
        assert errors[int(np.argmin(np.abs(ratios - chosen)))] <= min(errors) * 1.001
    nearest = round_to_nearest(weight, scheme).dequantized()
    clipped = round_clipped(weight, scheme, moment).dequantized()
    assert output_error(weight, clipped, inputs) < output_error(weight, nearest, inputs)
