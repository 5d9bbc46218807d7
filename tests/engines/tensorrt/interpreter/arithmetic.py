"""Layers that compute: element by element, along axes, and products of matrices.

Floats arrive in float32 and leave in it; half precision is rounded where a layer's output is.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.engines.tensorrt.interpreter.values import (
    Array,
    Evaluators,
    axes_of,
    dtype_of,
    require_same_rank,
)


def cast(layer: Any, value: Array) -> Array:
    return value.astype(dtype_of(layer.to_type))


def divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    raise NotImplementedError("DIV of integers")


BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "SUM": np.add,
    "SUB": np.subtract,
    "PROD": np.multiply,
    "DIV": divide,
    "FLOOR_DIV": np.floor_divide,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}


def elementwise(layer: Any, a: Array, b: Array) -> Array:
    require_same_rank(a, b)
    if a.dtype != b.dtype:
        raise ValueError(f"{layer.op.name} of {a.dtype} and {b.dtype}")
    return BINARY[layer.op.name](a, b)


UNARY: dict[str, Callable[[Array], Array]] = {
    "SQRT": np.sqrt,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
}


def unary(layer: Any, value: Array) -> Array:
    return UNARY[layer.op.name](value)


erf = np.vectorize(math.erf, otypes=[np.float32])


def gelu_tanh(value: Array) -> Array:
    """Hendrycks and Gimpel, arXiv:1606.08415: the approximation with tanh."""
    inner = np.sqrt(2 / np.pi, dtype=np.float32) * (value + np.float32(0.044715) * value**3)
    result: Array = np.float32(0.5) * value * (1 + np.tanh(inner))
    return result


def activation(layer: Any, value: Array) -> Array:
    kind = layer.type.name
    if kind == "CLIP":
        return np.clip(value, np.float32(layer.alpha), np.float32(layer.beta))
    functions: dict[str, Callable[[Array], Array]] = {
        "RELU": lambda x: np.maximum(x, 0),
        "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
        "TANH": np.tanh,
        "GELU_ERF": lambda x: np.float32(0.5) * x * (1 + erf(x / np.sqrt(np.float32(2)))),
        "GELU_TANH": gelu_tanh,
    }
    return functions[kind](value)


def select(_: Any, condition: Array, then: Array, otherwise: Array) -> Array:
    require_same_rank(condition, then, otherwise)
    return np.where(condition, then, otherwise)


REDUCTIONS: dict[str, Callable[..., Array]] = {
    "SUM": np.sum,
    "AVG": np.mean,
}


def reduce(layer: Any, value: Array) -> Array:
    reduction = REDUCTIONS[layer.op.name]
    return np.asarray(reduction(value, axis=axes_of(layer.axes), keepdims=layer.keep_dims))


def cumulative(layer: Any, value: Array, axis: Array) -> Array:
    if layer.exclusive or layer.reverse:
        raise NotImplementedError("a sum from the end, or without the entry itself")
    return np.cumsum(value, int(axis), dtype=value.dtype)


def softmax(layer: Any, value: Array) -> Array:
    return softmax_along(value, axes_of(layer.axes))


def softmax_along(value: Array, axis: tuple[int, ...]) -> Array:
    shifted = np.exp(value - value.max(axis, keepdims=True))
    result: Array = shifted / shifted.sum(axis, keepdims=True)
    return result


def normalization(layer: Any, value: Array, scale: Array, bias: Array) -> Array:
    if layer.num_groups != 1:
        raise NotImplementedError("a normalisation of groups")
    require_same_rank(value, scale, bias)
    axes = axes_of(layer.axes)
    centred = value - value.mean(axes, keepdims=True)
    variance = np.mean(centred**2, axes, keepdims=True)
    result: Array = centred / np.sqrt(variance + np.float32(layer.epsilon)) * scale + bias
    return result


def topk(layer: Any, value: Array, count: Array | None = None) -> tuple[Array, Array]:
    (axis,) = axes_of(layer.axes)
    k = layer.k if count is None else int(count)
    keys = -value if layer.op.name == "MAX" else value
    indices = np.argsort(keys, axis, kind="stable").take(range(k), axis)
    picked = np.take_along_axis(value, indices, axis)
    return picked, indices.astype(dtype_of(layer.indices_type))


def matrix_multiply(layer: Any, a: Array, b: Array) -> Array:
    return oriented(a, layer.op0) @ oriented(b, layer.op1)


def oriented(matrix: Array, operation: Any) -> Array:
    if operation.name == "VECTOR":
        raise NotImplementedError("a product with a vector")
    return matrix.swapaxes(-1, -2) if operation.name == "TRANSPOSE" else matrix


EVALUATORS: Evaluators = {
    "CAST": ("ICastLayer", cast),
    "ELEMENTWISE": ("IElementWiseLayer", elementwise),
    "UNARY": ("IUnaryLayer", unary),
    "ACTIVATION": ("IActivationLayer", activation),
    "SELECT": ("ISelectLayer", select),
    "REDUCE": ("IReduceLayer", reduce),
    "CUMULATIVE": ("ICumulativeLayer", cumulative),
    "SOFTMAX": ("ISoftMaxLayer", softmax),
    "NORMALIZATION": ("INormalizationLayer", normalization),
    "TOPK": ("ITopKLayer", topk),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", matrix_multiply),
}
