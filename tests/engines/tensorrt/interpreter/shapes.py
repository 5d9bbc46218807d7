"""Layers that move values and compute none: views, slices, gathers, constants."""

import ctypes
from typing import Any

import numpy as np

from tests.engines.tensorrt.interpreter.values import (
    Array,
    Evaluators,
    dims,
    dtype_of,
    require_same_rank,
)


class StoredWeights(ctypes.Structure):
    """``nvinfer1::Weights``."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    ]


def constant(layer: Any) -> Array:
    dtype, shape = dtype_of(layer.get_output(0).dtype), tuple(layer.shape)
    weights = layer.weights
    if not isinstance(weights, np.ndarray):
        weights = stored(weights, dtype)
    return weights.reshape(shape)


def stored(weights: Any, dtype: np.dtype[Any]) -> Array:
    """The numbers of a type that numpy hasn't, for which the bindings give no array.

    They have no address either, so that it is read from the Python object, whose first field is a
    pointer to the weights. Raises ValueError if there is something else.
    """
    pointer = ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value
    found = StoredWeights.from_address(pointer or 0)
    if (found.type, found.count) != (weights.dtype.value, weights.size):
        raise ValueError("the bindings keep weights in another way")
    if dtype.name != "int4":
        return np.frombuffer(ctypes.string_at(found.values, found.count * dtype.itemsize), dtype)
    packed = np.frombuffer(ctypes.string_at(found.values, -(-found.count // 2)), np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).ravel()[: found.count]
    return ((nibbles ^ 8).astype(np.int8) - 8).astype(dtype)


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
    mode = layer.mode.name
    if mode not in ("STRICT_BOUNDS", "WRAP"):
        raise NotImplementedError(f"a slice in mode {mode}")
    axes = list(layer.axes) if layer.axes is not None else list(range(value.ndim))
    starts, sizes = dims(layer.start, start), dims(layer.shape, shape)
    strides = dims(layer.stride, stride)
    for axis, first, size, step in zip(axes, starts, sizes, strides, strict=True):
        # A stride of 0 repeats one entry: so the parser expands.
        indices = first + step * np.arange(size)
        indices = indices % value.shape[axis] if mode == "WRAP" else indices
        require_inside(indices, value.shape[axis])
        value = value.take(indices, axis)
    return value


def gather(layer: Any, data: Array, indices: Array) -> Array:
    if layer.num_elementwise_dims:
        raise NotImplementedError("a gather with elementwise dimensions")
    sizes = layer.get_input(0).shape
    if layer.mode.name == "ND":
        axes = range(indices.shape[-1])
        found = [from_start(indices[..., k], data.shape[k], sizes[k]) for k in axes]
        entries: Array = data[tuple(found)]
        return entries
    axis = layer.axis
    indices = from_start(indices, data.shape[axis], sizes[axis])
    if layer.mode.name == "DEFAULT":
        return data.take(indices, axis)
    require_same_rank(data, indices)
    picked: Array = data[places_of(indices, axis)]
    return picked


def from_start(indices: Array, size: int, static_size: int) -> Array:
    """Indices from 0 to ``size`` - 1. Raises IndexError if one of them is undefined.

    "If an axis of Data has dynamic length, using a negative index for it has undefined behavior"
    (NvInfer.h, IGatherLayer): so in a static one it counts from the end.
    """
    if size == static_size:
        indices = np.where(indices < 0, indices + size, indices)
    require_inside(indices, size)
    return indices


def scatter(layer: Any, data: Array, indices: Array, updates: Array) -> Array:
    if layer.mode.name != "ELEMENT":
        raise NotImplementedError(f"a scatter in mode {layer.mode.name}")
    require_inside(indices, data.shape[layer.axis])
    result = data.copy()
    result[places_of(indices, layer.axis)] = updates
    return result


def places_of(indices: Array, axis: int) -> tuple[Array, ...]:
    """Each entry's own place, with its place along ``axis`` replaced by the index there."""
    places = list(np.ix_(*map(np.arange, indices.shape)))
    places[axis] = indices
    return tuple(places)


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
