"""GPTQ (Frantar et al. 2022): each column's rounding error is made up for by the columns after it.

Columns are rounded one after the other. What a column's rounding changes in the output is taken
off the later columns, by least squares over the activations: the inverse of XᵀX, as a triangular
factor, says how.
"""

import numpy as np
import numpy.typing as npt

from engines.quantization.clipping import clipped_parameters
from engines.quantization.weights import (
    Floats,
    Integers,
    QuantizedWeight,
    WeightScheme,
    group_parameters,
)

Doubles = npt.NDArray[np.float64]

DAMPING = 0.01  # of the mean diagonal of XᵀX, added to the diagonal
_BLOCK = 128  # columns whose effect on all columns behind them is computed at once
_SMALLEST_SPLIT = 64


class Gptq:
    """Quantises weights of layers that share inputs with a second moment XᵀX [in, in].

    ``activation_order`` takes the columns of the largest activations first; groups stay as they
    are, and their scales are chosen before any column is rounded.
    """

    def __init__(
        self, second_moment: Floats, *, damping: float = DAMPING, activation_order: bool = False
    ) -> None:
        diagonal = np.diagonal(second_moment)
        self._second_moment = second_moment
        self._is_unused = diagonal == 0
        self._reorders = activation_order
        self._order = (
            np.argsort(-diagonal, kind="stable") if activation_order else np.arange(len(diagonal))
        )
        hessian = second_moment[np.ix_(self._order, self._order)].astype(np.float64)
        unused = self._is_unused[self._order]
        hessian[unused, unused] = 1
        hessian[np.diag_indices_from(hessian)] += damping * np.diagonal(hessian).mean()
        self._factor = upper_factor_of_inverse(hessian).astype(np.float32)

    def quantize(self, weight: Floats, scheme: WeightScheme) -> QuantizedWeight:
        """Quantise a weight [out, in], whose rows don't depend on each other.

        Raises ValueError where the group size doesn't divide the inputs.
        """
        outputs, inputs = weight.shape
        weight = np.where(self._is_unused, np.float32(0), weight)
        scales, zero_points = group_parameters(weight, scheme)
        size = inputs // scales.shape[1]
        # A group's scales fit its columns as the earlier ones left them, where it has its turn.
        updates_scales = not self._reorders and size < inputs
        if not updates_scales:
            scales, zero_points = clipped_parameters(weight, scheme, self._second_moment)
        block = size * max(1, _BLOCK // size) if updates_scales else _BLOCK
        columns = np.ascontiguousarray(weight.T[self._order])
        integers = np.empty((inputs, outputs), np.int8)
        for start in range(0, inputs, block):
            end = min(start + block, inputs)
            errors = np.empty((end - start, outputs), np.float32)
            for position in range(start, end):
                column = self._order[position]
                group = column // size
                if updates_scales and column % size == 0:
                    here = slice(column, column + size)
                    found, zeros = clipped_parameters(
                        columns[here].T, scheme, self._second_moment[here, here]
                    )
                    scales[:, group] = found[:, 0]
                    if zero_points is not None and zeros is not None:
                        zero_points[:, group] = zeros[:, 0]
                zero = None if zero_points is None else zero_points[:, group]
                rounded = _rounded(columns[position], scheme, scales[:, group], zero)
                integers[column] = rounded
                error = columns[position] - _floats(rounded, scales[:, group], zero)
                error /= self._factor[position, position]
                behind = slice(position + 1, end)
                columns[behind] -= self._factor[position, behind, None] * error
                errors[position - start] = error
            columns[end:] -= self._factor[start:end, end:].T @ errors
        return QuantizedWeight(scheme, np.ascontiguousarray(integers.T), scales, zero_points)


def _rounded(
    column: Floats, scheme: WeightScheme, scales: Floats, zero_points: Integers | None
) -> Integers:
    numbers = column / scales
    if zero_points is not None:
        numbers += zero_points
    rounded: Floats = np.clip(np.rint(numbers), scheme.lowest, scheme.highest)
    return rounded.astype(np.int8)


def _floats(integers: Integers, scales: Floats, zero_points: Integers | None) -> Floats:
    numbers = integers.astype(np.float32)
    if zero_points is not None:
        numbers -= zero_points
    return numbers * scales


def upper_factor_of_inverse(matrix: Doubles) -> Doubles:
    """The upper triangular U with UᵀU = matrix⁻¹, for a symmetric positive definite matrix [n, n].

    Raises numpy.linalg.LinAlgError where it isn't positive definite.
    """
    # matrix = VVᵀ with V upper triangular, which is the lower factor of the matrix turned round.
    lower = np.linalg.cholesky(matrix[::-1, ::-1]).astype(np.float64, copy=False)
    return _inverse_of_lower(lower)[::-1, ::-1]


def _inverse_of_lower(lower: Doubles) -> Doubles:
    """The inverse of a lower triangular matrix, by halves."""
    size = len(lower)
    if size <= _SMALLEST_SPLIT:
        inverse: Doubles = np.tril(np.linalg.inv(lower))
        return inverse
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ lower[half:, :half] @ inverse[:half, :half]
    return inverse
