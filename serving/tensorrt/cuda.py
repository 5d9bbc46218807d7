"""CUDA's runtime API through cuda-bindings: every call checked, and memory that is freed together.

Everything runs on CUDA's device 0, which CUDA_VISIBLE_DEVICES chooses.
"""

import ctypes
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import CacheDType
from serving.closing import Closing
from serving.errors import EngineError, UserError
from serving.kv_cache import STORAGE, Shape


class CudaError(EngineError):
    """A failed call of CUDA; ``name`` is CUDA's name of the error, as in cudaErrorNoDevice."""

    def __init__(self, sentence: str, name: str) -> None:
        super().__init__(sentence)
        self.name = name


@functools.cache
def runtime_api() -> Any:
    """Import CUDA's runtime API. Raises UserError where cuda-bindings isn't installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise UserError(
            f"Engines of TensorRT need the Python package cuda-bindings ({error}): install it with "
            "pip install 'export-llm[rtx]' or 'export-llm[tensorrt]'."
        ) from error


def call(function: str, *arguments: Any) -> Any:
    """Call a function of CUDA's runtime API by its name; returns its result, if it has one.

    Raises CudaError with CUDA's own name and text of the error, and the state of the device.
    """
    api = runtime_api()
    status, *results = getattr(api, function)(*arguments)
    if status != api.cudaError_t.cudaSuccess:
        raise _failure(api, function, status)
    return results[0] if len(results) == 1 else tuple(results) or None


def release(function: str, *arguments: Any) -> None:
    """Call a function that frees something. A device that was lost has freed it already."""
    getattr(runtime_api(), function)(*arguments)


def _failure(api: Any, function: str, status: Any) -> CudaError:
    name = api.cudaGetErrorName(status)[1].decode()
    text = api.cudaGetErrorString(status)[1].decode()
    if status == api.cudaError_t.cudaErrorMemoryAllocation:
        remedy = "open the bundle with fewer slots, or close what else uses the GPU."
    else:
        remedy = "close the model and load it again, in a new process if that fails too."
    sentence = f"{function} failed with {name} ({text}), {_device_state(api)}: {remedy}"
    return CudaError(sentence, name)


def _device_state(api: Any) -> str:
    status, free, total = api.cudaMemGetInfo()
    if status != api.cudaError_t.cudaSuccess:
        return "and the device doesn't answer"
    return f"with {free / 1e9:,.1f} of the device's {total / 1e9:,.1f} GB free"


class DeviceBuffer:
    """A KV buffer [slots, kv_heads, capacity, head_dim] on the device; see kv_cache.Buffer."""

    def __init__(self, address: int, shape: Shape, dtype: CacheDType, stream: Any) -> None:
        self.address = address
        self.shape = shape
        self.nbytes = buffer_bytes(shape, dtype)
        self._position_bytes = shape[3] * STORAGE[dtype].itemsize
        self._stream = stream

    def move(self, from_slot: int, to_slot: int, length: int, start: int = 0) -> None:
        """Copy positions ``start`` to before ``length`` of a slot to another, between two steps."""
        slots, heads, capacity, _ = self.shape
        row, pitch = self.nbytes // slots, capacity * self._position_bytes
        first = self.address + start * self._position_bytes
        call(
            "cudaMemcpy2DAsync",
            first + to_slot * row,
            pitch,
            first + from_slot * row,
            pitch,
            (length - start) * self._position_bytes,
            heads,
            runtime_api().cudaMemcpyKind.cudaMemcpyDeviceToDevice,
            self._stream,
        )


class Memory(Closing):
    """Memory of the device, and host memory that it can copy from and to; all freed by ``close``.

    ``allocated`` counts the device's bytes. Every method raises CudaError where memory is short.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._frees: list[Callable[[], None]] = []
        self.allocated = 0

    def zeros(self, nbytes: int) -> int:
        """Allocate zeroed memory of the device, before any later work of the stream."""
        address = int(call("cudaMalloc", max(nbytes, 1)))
        self._frees.append(lambda: release("cudaFree", address))
        self.allocated += nbytes
        call("cudaMemsetAsync", address, 0, max(nbytes, 1), self._stream)
        return address

    def buffer(self, shape: Shape, dtype: CacheDType) -> DeviceBuffer:
        """Allocate a zeroed KV buffer: what KVCache takes as ``allocate``."""
        return DeviceBuffer(self.zeros(buffer_bytes(shape, dtype)), shape, dtype, self._stream)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked host memory, which must not be used after ``close``."""
        address = int(call("cudaHostAlloc", nbytes, 0))
        self._frees.append(lambda: release("cudaFreeHost", address))
        pages = (ctypes.c_uint8 * nbytes).from_address(address)
        return np.ctypeslib.as_array(pages)

    def close(self) -> None:
        """Free everything; nothing may run on the device that uses it."""
        while self._frees:
            self._frees.pop()()
        self.allocated = 0


def buffer_bytes(shape: Shape, dtype: CacheDType) -> int:
    """Bytes of a KV buffer."""
    return int(np.prod(shape)) * STORAGE[dtype].itemsize
