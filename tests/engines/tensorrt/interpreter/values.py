"""TensorRT's types and shapes on numpy arrays."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
# The interface of each type of layer, and the function of a layer and its inputs (None where it
# has none) to its output or outputs.
Evaluators = Mapping[str, tuple[str, Callable[..., Any]]]

DTYPES = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT4": np.dtype(ml_dtypes.int4),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
HALVES = (DTYPES["HALF"], DTYPES["BF16"])


def dtype_of(kind: Any) -> np.dtype[Any]:
    """The numpy type of a TensorRT ``DataType``."""
    dtype: np.dtype[Any] = DTYPES[kind.name]
    return dtype


def widened(array: Array | None) -> Array | None:
    """Half precision as float32, in which a layer computes; everything else as it is."""
    return array.astype(np.float32) if array is not None and array.dtype in HALVES else array


def checked(array: Array, tensor: Any) -> Array:
    """``array`` as the value of ``tensor``, rounded if that is in half precision.

    Raises ValueError if TensorRT gives the tensor another type or shape.
    """
    dtype, shape = dtype_of(tensor.dtype), tuple(tensor.shape)
    if array.dtype == np.float32 and dtype in HALVES:
        array = array.astype(dtype)
    fits = len(shape) == array.ndim and all(
        wanted in (-1, size) for wanted, size in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(
            f"{tensor.name!r} should be {dtype} {shape} and is {array.dtype} {array.shape}"
        )
    return array


def require_same_rank(*arrays: Array) -> None:
    """TensorRT broadcasts sizes of 1, never ranks. Raises ValueError."""
    if len({array.ndim for array in arrays}) > 1:
        raise ValueError(f"operands of shapes {[array.shape for array in arrays]}")


def axes_of(mask: int) -> tuple[int, ...]:
    """The axes whose bits are set."""
    return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)


def dims(static: Iterable[int] | None, dynamic: Array | None) -> list[int]:
    """Sizes from a layer's attribute, or from the input that replaces it."""
    if dynamic is not None:
        return [int(size) for size in dynamic]
    if static is None:
        raise ValueError("neither static nor dynamic sizes")
    return list(static)
