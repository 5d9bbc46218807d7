"""Integers and float8 to floats and back, symmetric, with scales of a tensor, an axis or blocks.

Blocks follow from the scales: along each axis there are as many as they have entries.
"""

from typing import Any

import numpy as np

from tests.engines.tensorrt.interpreter.values import DTYPES, Array, Evaluators, dtype_of

FLOAT8 = DTYPES["FP8"]
LARGEST = 448  # of float8


def quantize(layer: Any, value: Array, scale: Array, zero: Array | None = None) -> Array:
    require_symmetric(zero)
    dtype = dtype_of(layer.to_type)
    if dtype == FLOAT8:
        return np.clip(value / spread(layer, scale, value), -LARGEST, LARGEST).astype(dtype)
    limits = {"int8": (-128, 127), "int4": (-8, 7)}[dtype.name]
    return np.clip(np.rint(value / spread(layer, scale, value)), *limits).astype(dtype)


def dequantize(layer: Any, value: Array, scale: Array, zero: Array | None = None) -> Array:
    require_symmetric(zero)
    return value.astype(np.float32) * spread(layer, scale, value)


def spread(layer: Any, scale: Array, value: Array) -> Array:
    """Scales that broadcast to ``value``."""
    if scale.ndim == 0 or scale.size == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        shape = [1] * value.ndim
        shape[layer.axis] = value.shape[layer.axis]
        return scale.reshape(shape)
    for axis, (entries, size) in enumerate(zip(scale.shape, value.shape, strict=True)):
        if size % entries:
            raise ValueError(f"{entries} scales for {size} values")
        scale = scale.repeat(size // entries, axis)
    return scale


def require_symmetric(zero: Array | None) -> None:
    if zero is not None and np.any(zero.astype(np.int32)):
        raise ValueError("TensorRT takes symmetric quantisation only")


EVALUATORS: Evaluators = {
    "QUANTIZE": ("IQuantizeLayer", quantize),
    "DEQUANTIZE": ("IDequantizeLayer", dequantize),
}
