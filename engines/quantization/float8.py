"""Weights in float8 (e4m3, without infinities), as checkpoints store them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engines.quantization.weights import Floats


@dataclass(frozen=True)
class Float8Scheme:
    """What has a scale of its own: the tensor, a row, or a block of a row's inputs."""

    scales: Literal["tensor", "row", "block"]
    block_size: int = 0
    """Inputs of a block, where there are blocks."""
    activations: bool = False
    """Whether the layer's activations are rounded to float8 too, with one static scale."""


@dataclass(frozen=True)
class Float8Weight:
    """A weight: ``numbers`` float8_e4m3fn [out, in] times ``scales``.

    These are float32 [] for the tensor, [out], or [out, blocks] of equally many inputs.
    ``activation_scale`` is that of the layer's activations, if they are in float8 too.
    """

    numbers: npt.NDArray[Any]
    scales: Floats
    activation_scale: float | None = None

    @property
    def scheme(self) -> Float8Scheme:
        """How it is scaled."""
        activations = self.activation_scale is not None
        if self.scales.ndim == 2:
            size = self.numbers.shape[1] // self.scales.shape[1]
            return Float8Scheme("block", size, activations)
        return Float8Scheme("row" if self.scales.ndim else "tensor", activations=activations)

    def dequantized(self) -> Floats:
        """The weight that the numbers stand for, float32 [out, in]."""
        scales = self.scales
        if scales.ndim:
            scales = scales.reshape(len(scales), -1, 1)
        rows, inputs = self.numbers.shape
        blocks = scales.shape[1] if scales.ndim else 1
        weight = self.numbers.astype(np.float32).reshape(rows, blocks, -1) * scales
        return np.asarray(weight.reshape(rows, inputs), np.float32)
