"""GPTQ against the paper's procedure, written plainly: one column at a time, explicit inverses."""

import numpy as np
import pytest

from engines.quantization.clipping import clipped_parameters
from engines.quantization.gptq import DAMPING, Gptq, upper_factor_of_inverse
from engines.quantization.weights import QuantizedWeight, WeightScheme, round_to_nearest

SCHEMES = [
    WeightScheme(4, 32),
    WeightScheme(4, 32, symmetric=False),
    WeightScheme(4, 128, symmetric=False),
    WeightScheme(8, 64),
    WeightScheme(4),
]
INPUTS, OUTPUTS, TOKENS = 256, 12, 600


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight [out, in] and correlated inputs [tokens, in], one of them always zero."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((40, INPUTS)) * np.exp(random.uniform(-1, 1, INPUTS))
    inputs = random.standard_normal((TOKENS, 40)) @ mixing
    inputs += 0.3 * random.standard_normal((TOKENS, INPUTS))
    inputs[:, 5] = 0
    weight = random.standard_normal((OUTPUTS, INPUTS))
    return weight.astype(np.float32), inputs.astype(np.float32)


def output_error(weight: np.ndarray, quantized: QuantizedWeight, inputs: np.ndarray) -> float:
    return float(np.square(inputs @ (quantized.dequantized() - weight).T).sum())


def naive(weight: np.ndarray, second_moment: np.ndarray, scheme: WeightScheme) -> np.ndarray:
    """Round column by column; after each, invert what is left of the Hessian and compensate.

    Returns the dequantised weight. The group's scales are those of the columns as they are when
    the group begins; they are no matter of this algorithm.
    """
    left = weight.astype(np.float64)
    hessian = second_moment.astype(np.float64)
    unused = np.flatnonzero(np.diagonal(hessian) == 0)
    left[:, unused] = 0
    hessian[unused, unused] = 1
    hessian += DAMPING * np.diagonal(hessian).mean() * np.eye(INPUTS)
    size = scheme.group_size or INPUTS
    result = np.zeros_like(left)
    for column in range(INPUTS):
        if column % size == 0:
            group = slice(column, column + size)
            found, zeros = clipped_parameters(
                left[:, group].astype(np.float32), scheme, second_moment[group, group]
            )
            scales = found[:, 0].astype(np.float64)
            zero = 0 if zeros is None else zeros[:, 0].astype(np.float64)
        integers = np.clip(np.round(left[:, column] / scales + zero), scheme.lowest, scheme.highest)
        result[:, column] = (integers - zero) * scales
        inverse = np.linalg.inv(hessian[column:, column:])
        error = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, column:] -= np.outer(error, inverse[0])
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_agrees_with_explicit_inverses(scheme: WeightScheme) -> None:
    weight, inputs = problem()
    second_moment = inputs.T @ inputs
    expected = naive(weight, second_moment, scheme)
    quantized = Gptq(second_moment).quantize(weight, scheme)
    step = quantized.scales.max()
    differing = np.abs(quantized.dequantized() - expected) > 1e-3 * step
    # float32 against float64: a number half-way between two integers may go either way, and then
    # takes the rest of its row with it.
    assert differing.any(axis=1).sum() <= 1
    assert quantized.integers.min() >= scheme.lowest
    assert quantized.integers.max() <= scheme.highest


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("activation_order", [False, True])
def test_is_more_exact_than_rounding_to_nearest(
    scheme: WeightScheme, activation_order: bool
) -> None:
    weight, inputs = problem(1)
    gptq = Gptq(inputs.T @ inputs, activation_order=activation_order)
    found = output_error(weight, gptq.quantize(weight, scheme), inputs)
    assert found < 0.5 * output_error(weight, round_to_nearest(weight, scheme), inputs)


def test_rows_do_not_depend_on_each_other() -> None:
    weight, inputs = problem(2)
    gptq = Gptq(inputs.T @ inputs)
    whole = gptq.quantize(weight, WeightScheme(4, 64))
    part = gptq.quantize(weight[5:6], WeightScheme(4, 64))
    np.testing.assert_array_equal(whole.integers[5:6], part.integers)


def test_factor_of_the_inverse() -> None:
    random = np.random.default_rng(3)
    factor = random.standard_normal((300, 200))
    matrix = factor.T @ factor + np.eye(200)
    upper = upper_factor_of_inverse(matrix)
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ matrix, np.eye(200), atol=1e-9)


def test_a_group_size_that_does_not_divide() -> None:
    weight, inputs = problem()
    with pytest.raises(ValueError, match="96 doesn't divide 256 inputs"):
        Gptq(inputs.T @ inputs).quantize(weight, WeightScheme(4, 96))
