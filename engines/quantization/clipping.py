"""Scales that give up the range's ends where that makes the layer's output more exact."""

import numpy as np

from engines.quantization.weights import (
    Floats,
    Integers,
    QuantizedWeight,
    WeightScheme,
    group_parameters,
    round_to_grid,
)

_RATIOS = tuple(np.linspace(0.95, 0.5, 10).tolist())


def round_clipped(weight: Floats, scheme: WeightScheme, second_moment: Floats) -> QuantizedWeight:
    """Round a weight [out, in] to nearest with clipped ranges; arguments as ``clipped_parameters``.

    Raises ValueError where the group size doesn't divide the inputs.
    """
    return round_to_grid(weight, scheme, *clipped_parameters(weight, scheme, second_moment))


def clipped_parameters(
    weight: Floats, scheme: WeightScheme, second_moment: Floats
) -> tuple[Floats, Integers | None]:
    """Scales and zero points [out, groups] with the least squared output error of each group.

    ``second_moment`` is XᵀX of the layer's inputs, [in, in]. The range of each group is shrunk to
    95, 90 ... 50% (the clipping search of AWQ, Lin et al. 2023). Raises ValueError where the group
    size doesn't divide the inputs.
    """
    full, zero_points = group_parameters(weight, scheme)
    size = weight.shape[1] // full.shape[1]
    moments = np.stack(
        [second_moment[g : g + size, g : g + size] for g in range(0, weight.shape[1], size)]
    )
    best = full
    least = _group_errors(weight, round_to_grid(weight, scheme, full, zero_points), moments)
    for ratio in _RATIOS:
        scales = full * np.float32(ratio)
        rounded = round_to_grid(weight, scheme, scales, zero_points)
        errors = _group_errors(weight, rounded, moments)
        is_better = errors < least
        best = np.where(is_better, scales, best)
        least = np.minimum(least, errors)
    return best, zero_points


def _group_errors(weight: Floats, rounded: QuantizedWeight, moments: Floats) -> Floats:
    """Squared error [out, groups] of each group's share of the output."""
    error = rounded.dequantized() - weight
    by_group = error.reshape(len(weight), len(moments), -1).transpose(1, 0, 2)
    errors: Floats = np.einsum("goi,goi->og", by_group @ moments, by_group)
    return errors
