"""KV buffers on an NVIDIA GPU, through ONNX Runtime's allocator and the CUDA driver.

Its tests are marked gpu: they have not run on a GPU yet.
"""

import ctypes

import onnxruntime as ort

from serving.bundle import CacheDType
from serving.contract import ELEMENT_TYPE
from serving.kv_cache import Shape


class CudaBuffer:
    """A zeroed buffer [slots, kv_heads, capacity, head_dim] in the memory of CUDA device 0."""

    def __init__(self, shape: Shape, dtype: CacheDType) -> None:
        self._value = ort.OrtValue.ortvalue_from_shape_and_type(shape, ELEMENT_TYPE[dtype], "cuda")
        self.shape = shape
        self.address = int(self._value.data_ptr())
        self.nbytes = int(self._value.tensor_size_in_bytes())
        with _PrimaryContext() as cuda:
            to, size = ctypes.c_uint64(self.address), ctypes.c_size_t(self.nbytes)
            _check(cuda.cuMemsetD8_v2(to, ctypes.c_ubyte(0), size))

    def move(self, from_slot: int, to_slot: int, length: int) -> None:  # noqa: ARG002
        """Copy one slot to another: the whole row, for that is a single copy."""
        row = self.nbytes // self.shape[0]
        to = ctypes.c_uint64(self.address + to_slot * row)
        origin = ctypes.c_uint64(self.address + from_slot * row)
        with _PrimaryContext() as cuda:
            _check(cuda.cuMemcpyDtoD_v2(to, origin, ctypes.c_size_t(row)))


class _PrimaryContext:
    """The driver library with device 0's primary context current: the one ONNX Runtime uses."""

    def __enter__(self) -> ctypes.CDLL:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        _check(self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
        _check(self._cuda.cuCtxPushCurrent_v2(context))
        return self._cuda

    def __exit__(self, *error: object) -> None:
        _check(self._cuda.cuCtxSynchronize())
        _check(self._cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())))
        _check(self._cuda.cuDevicePrimaryCtxRelease_v2(0))


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the CUDA driver failed with error {status}")
