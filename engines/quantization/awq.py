"""AWQ (Lin et al. 2023): channels with large activations get finer steps.

The weights' input channels are multiplied with a power of the activations' mean magnitude before
they are rounded, and the activations divided by it. The exponent is the one with the least error of
the layers' outputs.
"""

from collections.abc import Sequence

import numpy as np

from engines.calibration import InputStatistics
from engines.quantization.weights import Floats, WeightScheme, round_to_nearest

_EXPONENTS = tuple(np.linspace(0.05, 1, 20).tolist())
# Each row of a weight has an error of its own: so many of them, evenly spread, tell the sum.
_SAMPLED_ROWS = 512


def search_scale(
    weights: Sequence[tuple[Floats, WeightScheme]], statistics: InputStatistics
) -> Floats | None:
    """The scale [in] of the input channels that the layers of one source share.

    ``weights`` are [out, in] each, with the scheme that it will have; ``statistics`` have a second
    moment. None where no scale is better than rounding the weights as they are.
    """
    sampled = [(weight[:: -(-len(weight) // _SAMPLED_ROWS)], scheme) for weight, scheme in weights]
    best = None
    least = _output_error(sampled, np.ones_like(statistics.mean_magnitude), statistics)
    magnitude = np.maximum(statistics.mean_magnitude, 1e-4 * statistics.mean_magnitude.max())
    for exponent in _EXPONENTS:
        scale = magnitude**exponent
        scale /= np.sqrt(scale.max() * scale.min())
        error = _output_error(sampled, scale, statistics)
        if error < least:
            best, least = scale.astype(np.float32), error
    return best


def _output_error(
    weights: Sequence[tuple[Floats, WeightScheme]], scale: Floats, statistics: InputStatistics
) -> float:
    """Squared error of the outputs, summed over the weights' rows, if they are scaled like this."""
    assert statistics.second_moment is not None
    total = 0.0
    for weight, scheme in weights:
        error = round_to_nearest(weight * scale, scheme).dequantized() / scale - weight
        total += float(np.vdot(error @ statistics.second_moment, error))
    return total
