"""Memory of an NVIDIA GPU, through the CUDA driver's C API.

It belongs to the primary context of device 0, which ONNX Runtime uses too. Copies are over when a
function returns: engines have streams of their own, which the driver's doesn't wait for. Names and
argument types are those of cuda.h, the same in CUDA 12 and 13.

Its tests are marked gpu: they have not run on a GPU yet.
"""

import ctypes
import functools
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import CacheDType
from serving.kv_cache import STORAGE, Shape

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

_ADDRESS, _SIZE, _POINTER = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDevicePrimaryCtxRetain": (_POINTER, ctypes.c_int),
    "cuCtxSetCurrent": (_POINTER,),
    "cuCtxSynchronize": (),
    "cuGetErrorName": (ctypes.c_int, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_POINTER, _SIZE, ctypes.c_uint),
    "cuMemFreeHost": (_POINTER,),
    "cuMemsetD8_v2": (_ADDRESS, ctypes.c_ubyte, _SIZE),
    "cuMemcpyDtoD_v2": (_ADDRESS, _ADDRESS, _SIZE),
    "cuMemcpyHtoD_v2": (_ADDRESS, _POINTER, _SIZE),
    "cuMemcpyDtoH_v2": (_POINTER, _ADDRESS, _SIZE),
}


class CudaBuffer:
    """A zeroed buffer [slots, kv_heads, capacity, head_dim] on the GPU.

    Raises MemoryError if it doesn't fit there.
    """

    def __init__(self, shape: Shape, dtype: CacheDType) -> None:
        self._memory = DeviceMemory(int(np.prod(shape)) * STORAGE[dtype].itemsize)
        self.shape = shape
        self.address = self._memory.address
        self.nbytes = self._memory.nbytes

    def move(
        self,
        from_slot: int,
        to_slot: int,
        length: int,  # noqa: ARG002
        start: int = 0,  # noqa: ARG002
    ) -> None:
        """Copy one slot to another: the whole row, for that is a single copy."""
        row = self.nbytes // self.shape[0]
        base = self.address
        call("cuMemcpyDtoD_v2", base + to_slot * row, base + from_slot * row, row)
        call("cuCtxSynchronize")


class DeviceMemory:
    """Zeroed bytes on the GPU, freed with the object; raises MemoryError if they don't fit."""

    def __init__(self, nbytes: int) -> None:
        allocated = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(allocated), nbytes)
        self.address, self.nbytes = allocated.value, nbytes
        weakref.finalize(self, call, "cuMemFree_v2", self.address)
        call("cuMemsetD8_v2", self.address, 0, nbytes)
        call("cuCtxSynchronize")


class MirroredMemory:
    """Zeroed bytes on the GPU at ``address``, and as many in page-locked memory as ``host``."""

    host: npt.NDArray[np.uint8]

    def __init__(self, nbytes: int) -> None:
        self._device = DeviceMemory(nbytes)
        self.address = self._device.address
        page_locked = ctypes.c_void_p()
        call("cuMemHostAlloc", ctypes.byref(page_locked), nbytes, 0)
        assert page_locked.value is not None
        weakref.finalize(self, call, "cuMemFreeHost", page_locked.value)
        self._host_address = page_locked.value
        buffer = (ctypes.c_ubyte * nbytes).from_address(self._host_address)
        self.host = np.ctypeslib.as_array(buffer)
        self.host[:] = 0

    def upload(self) -> None:
        """Copy all bytes to the GPU."""
        call("cuMemcpyHtoD_v2", self.address, self._host_address, self.host.nbytes)

    def download(self, nbytes: int) -> None:
        """Copy the first bytes from the GPU."""
        call("cuMemcpyDtoH_v2", self._host_address, self.address, nbytes)


def call(function: str, *arguments: Any) -> None:
    """Call the driver in device 0's primary context.

    Raises MemoryError if the GPU is out of memory and RuntimeError, with the name of the function
    and of the error, for anything else.
    """
    driver, context = _driver()
    _check(driver, "cuCtxSetCurrent", driver.cuCtxSetCurrent(context))
    _check(driver, function, getattr(driver, function)(*arguments))


@functools.cache
def _driver() -> tuple[ctypes.CDLL, int | None]:
    """The driver and device 0's primary context, which is kept until the process ends.

    Raises OSError where there is no driver.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    for name, argument_types in _ARGUMENTS.items():
        getattr(driver, name).argtypes = argument_types
    context = ctypes.c_void_p()
    _check(driver, "cuInit", driver.cuInit(0))
    retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    _check(driver, "cuDevicePrimaryCtxRetain", retained)
    return driver, context.value


def _check(driver: ctypes.CDLL, function: str, status: int) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(text))
    name = text.value.decode() if text.value else f"error {status}"
    failure = MemoryError if status == _OUT_OF_MEMORY else RuntimeError
    raise failure(f"the CUDA driver's {function} failed: {name}")
