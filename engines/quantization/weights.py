"""Integer weights: the scheme, the numbers, and rounding to nearest."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int8]
Method = Literal["round-to-nearest", "awq", "gptq"]

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class WeightScheme:
    """How a weight becomes integers; without a ``group_size`` each output row has one scale."""

    bits: Literal[4, 8]
    group_size: int | None = None
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The smallest integer; symmetric 8 bits leave -128 out, as TensorRT does."""
        return -(1 << self.bits - 1) + (1 if self.symmetric and self.bits == 8 else 0)

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits - 1) - 1


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [out, in] as integers: weight = (integers - zero_points) * scales, by group.

    ``integers`` is int8 [out, in], ``scales`` float32 [out, groups] and ``zero_points`` int8
    [out, groups], or None for zeros. Group g of a row has its inputs g * size to (g + 1) * size.
    """

    scheme: WeightScheme
    integers: Integers
    scales: Floats
    zero_points: Integers | None = None

    def dequantized(self) -> Floats:
        """The weight that the integers stand for, float32 [out, in]."""
        rows, groups = self.scales.shape
        integers = self.integers.reshape(rows, groups, -1).astype(np.float32)
        if self.zero_points is not None:
            integers -= self.zero_points[:, :, None]
        weight: Floats = (integers * self.scales[:, :, None]).reshape(self.integers.shape)
        return weight


def round_to_nearest(weight: Floats, scheme: WeightScheme) -> QuantizedWeight:
    """Quantise a weight [out, in] by itself: the range of each group decides its scale.

    Raises ValueError where the group size doesn't divide the inputs.
    """
    return round_to_grid(weight, scheme, *group_parameters(weight, scheme))


def round_to_grid(
    weight: Floats, scheme: WeightScheme, scales: Floats, zero_points: Integers | None
) -> QuantizedWeight:
    """Round a weight [out, in] with given scales and zero points [out, groups], and clip it."""
    groups = weight.reshape(*scales.shape, -1)
    integers = groups / scales[:, :, None]
    if zero_points is not None:
        integers += zero_points[:, :, None]
    np.rint(integers, out=integers)
    np.clip(integers, scheme.lowest, scheme.highest, out=integers)
    return QuantizedWeight(
        scheme, integers.astype(np.int8).reshape(weight.shape), scales, zero_points
    )


def group_parameters(weight: Floats, scheme: WeightScheme) -> tuple[Floats, Integers | None]:
    """Scales and zero points [out, groups] that cover the range of every group.

    Raises ValueError where the group size doesn't divide the inputs.
    """
    rows, inputs = weight.shape
    size = scheme.group_size or inputs
    if inputs % size:
        raise ValueError(f"a group size of {size} doesn't divide {inputs} inputs")
    groups = weight.reshape(rows, inputs // size, size)
    if scheme.symmetric:
        # The sign with the larger magnitude gets the extra integer that 4 bits have.
        largest = groups.max(axis=2, initial=0), groups.min(axis=2, initial=0)
        scales = np.maximum(largest[0] / scheme.highest, largest[1] / scheme.lowest)
        return _positive(scales), None
    high, low = groups.max(axis=2, initial=0), groups.min(axis=2, initial=0)
    scales = _positive((high - low) / (scheme.highest - scheme.lowest))
    zero_points = np.rint(scheme.lowest - low / scales)
    return scales, np.clip(zero_points, scheme.lowest, scheme.highest).astype(np.int8)


def _positive(scales: Floats) -> Floats:
    """Let groups of zeros have a scale of 1."""
    return np.where(scales > 0, scales, 1).astype(np.float32)
