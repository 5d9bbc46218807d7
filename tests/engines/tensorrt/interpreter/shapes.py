"""Layers that move values and compute none: views, slices, gathers, constants."""

import ctypes
from math import prod
from typing import Any

import numpy as np

from tests.engines.tensorrt.interpreter.values import (
    Array,
    Evaluators,
    dims,
    dtype_of,
    require_same_rank,
)


def constant(layer: Any) -> Array:
    dtype, shape = dtype_of(layer.get_output(0).dtype), tuple(layer.shape)
    weights = layer.weights
    if isinstance(weights, np.ndarray):
        return weights.reshape(shape)
    # numpy has no such type, so that the bindings give an address.
    count = prod(shape)
    bytes_ = ctypes.string_at(weights.ptr, weights.nbytes)
    if dtype.name != "int4":
        return np.frombuffer(bytes_, dtype, count).reshape(shape)
    packed = np.frombuffer(bytes_, np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).ravel()[:count]
    return (((nibbles ^ 8).astype(np.int8)) - 8).astype(dtype).reshape(shape)


def shape_of(_: Any, value: Array) -> Array:
    return np.array(value.shape, np.int64)


def identity(_: Any, value: Array) -> Array:
    return value


def shuffle(layer: Any, value: Array, dynamic: Array | None = None) -> Array:
    value = value.transpose(tuple(layer.first_transpose)[: value.ndim])
    if dynamic is not None or layer.reshape_dims is not None:
        wanted = dims(layer.reshape_dims, dynamic)
        if layer.zero_is_placeholder:
            wanted = [size or value.shape[axis] for axis, size in enumerate(wanted)]
        value = value.reshape(wanted)
    return value.transpose(tuple(layer.second_transpose)[: value.ndim])


def squeeze(_: Any, value: Array, axes: Array | None = None) -> Array:
    return np.squeeze(value, None if axes is None else tuple(axes.tolist()))


def unsqueeze(_: Any, value: Array, axes: Array) -> Array:
    return np.expand_dims(value, tuple(axes.tolist()))


def concatenation(layer: Any, *values: Array) -> Array:
    return np.concatenate(values, layer.axis)


def slice_(
    layer: Any,
    value: Array,
    start: Array | None = None,
    shape: Array | None = None,
    stride: Array | None = None,
) -> Array:
    if layer.mode.name != "STRICT_BOUNDS":
        raise NotImplementedError(f"a slice in mode {layer.mode.name}")
    axes = list(layer.axes) if layer.axes is not None else list(range(value.ndim))
    starts, sizes = dims(layer.start, start), dims(layer.shape, shape)
    strides = dims(layer.stride, stride)
    for axis, first, size, step in zip(axes, starts, sizes, strides, strict=True):
        # A stride of 0 repeats one entry: so the parser expands.
        indices = first + step * np.arange(size)
        require_inside(indices, value.shape[axis])
        value = value.take(indices, axis)
    return value


def gather(layer: Any, data: Array, indices: Array) -> Array:
    if layer.num_elementwise_dims:
        raise NotImplementedError("a gather with elementwise dimensions")
    require_inside(indices, data.shape[layer.axis])
    if layer.mode.name == "DEFAULT":
        return data.take(indices, layer.axis)
    if layer.mode.name == "ELEMENT":
        require_same_rank(data, indices)
        own = [np.arange(size) for size in indices.shape]
        places = list(np.ix_(*own))
        places[layer.axis] = indices
        picked: Array = data[tuple(places)]
        return picked
    raise NotImplementedError(f"a gather in mode {layer.mode.name}")


def scatter(layer: Any, data: Array, indices: Array, updates: Array) -> Array:
    if layer.mode.name != "ELEMENT":
        raise NotImplementedError(f"a scatter in mode {layer.mode.name}")
    require_inside(indices, data.shape[layer.axis])
    places = list(np.ix_(*(np.arange(size) for size in indices.shape)))
    places[layer.axis] = indices
    result = data.copy()
    result[tuple(places)] = updates
    return result


def fill(layer: Any, shape: Array, first: Array | None = None, steps: Array | None = None) -> Array:
    if layer.operation.name != "LINSPACE" or first is None or steps is None:
        raise NotImplementedError(f"a fill with {layer.operation.name} or static values")
    places = np.indices(tuple(shape.tolist()))
    values: Array = first + np.tensordot(steps, places, axes=1)
    return values.astype(dtype_of(layer.to_type))


def require_inside(indices: Array, size: int) -> None:
    """An index outside of a tensor is undefined. Raises IndexError."""
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise IndexError(f"indices from {indices.min()} to {indices.max()} of {size}")


EVALUATORS: Evaluators = {
    "CONSTANT": ("IConstantLayer", constant),
    "SHAPE": ("IShapeLayer", shape_of),
    "IDENTITY": ("IIdentityLayer", identity),
    "SHUFFLE": ("IShuffleLayer", shuffle),
    "SQUEEZE": ("ISqueezeLayer", squeeze),
    "UNSQUEEZE": ("IUnsqueezeLayer", unsqueeze),
    "CONCATENATION": ("IConcatenationLayer", concatenation),
    "SLICE": ("ISliceLayer", slice_),
    "GATHER": ("IGatherLayer", gather),
    "SCATTER": ("IScatterLayer", scatter),
    "FILL": ("IFillLayer", fill),
}
