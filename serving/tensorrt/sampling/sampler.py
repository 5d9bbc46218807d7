"""Launching the kernels: everything is allocated once, and a launch can be captured in a graph."""

import ctypes
from collections.abc import Callable
from typing import Any, Literal

from cuda.bindings import driver

from serving.closing import Closing
from serving.errors import EngineError, UserError
from serving.tensorrt.sampling.compilation import kernels
from serving.tensorrt.sampling.parameters import ROW, Rows

LogitsDType = Literal["float32", "float16", "bfloat16"]

THREADS = 512  # of a block: MAX_THREADS in sampling.cu
LARGEST_VOCABULARY = 2**20  # what its fixed-point sums can hold
WORKSPACE_BYTES = 8 * (3 + 11 * 256 + 1)  # of a row: Workspace in sampling.cu


class DeviceSampler(Closing):
    """Chooses the next tokens of up to ``rows`` rows of logits, on the current context's device.

    Raises UserError for a vocabulary that is too large, and where the kernels can't be compiled.
    """

    def __init__(self, rows: int, vocab: int, dtype: LogitsDType) -> None:
        if vocab > LARGEST_VOCABULARY:
            raise UserError(
                f"The vocabulary has {vocab} tokens, but sampling on the GPU takes at most "
                f"{LARGEST_VOCABULARY}: serve the model with ONNX Runtime."
            )
        device = call(driver.cuCtxGetDevice)
        attribute = driver.CUdevice_attribute
        major, minor, self._processors = (
            int(call(driver.cuDeviceGetAttribute, which, device))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )
        )
        self.rows, self.vocab = rows, vocab
        self._module = call(driver.cuModuleLoadData, kernels((major, minor)))
        self._kernel = call(driver.cuModuleGetFunction, self._module, f"sample_{dtype}".encode())
        self._parameters = int(call(driver.cuMemAlloc, rows * ROW.itemsize))
        self._workspace = int(call(driver.cuMemAlloc, rows * WORKSPACE_BYTES))

    def write(self, first_row: int, parameters: Rows, stream: int) -> None:
        """Give rows from ``first_row`` on their ``parameters`` [n], in the order of the stream.

        Rows keep them, and count their tokens, until they are written again: when a sequence
        begins or moves to another row.
        """
        if not 0 <= first_row <= first_row + len(parameters) <= self.rows:
            raise ValueError(f"{len(parameters)} rows from {first_row} on, of {self.rows}")
        to = self._parameters + first_row * ROW.itemsize
        call(driver.cuMemcpyHtoDAsync, to, parameters.tobytes(), parameters.nbytes, stream)

    def launch(self, logits: int, tokens: int, lengths: int, rows: int, stream: int) -> None:
        """Choose a token for each of the first ``rows`` rows; enqueues and returns.

        ``logits`` is the device address of [rows, vocab] and ``tokens`` that of int64 [rows], which
        may be the next step's input_ids. ``lengths`` is 0, or the address of its past_lengths,
        int64 [rows]: each grows by one. A row with NaN gets -1. Allocates nothing and waits for
        nothing, so a CUDA graph can capture it: a memset and a kernel. It has one workspace, so
        launches must follow each other: on one stream, or on several that wait for each other.
        """
        blocks = blocks_of_a_row(rows, self.vocab, self._processors)
        values = (logits, self.vocab, self._parameters, self._workspace, tokens, lengths)
        pointer = ctypes.c_void_p
        arguments = (values, (pointer, ctypes.c_int, pointer, pointer, pointer, pointer))
        call(driver.cuMemsetD8Async, self._workspace, 0, rows * WORKSPACE_BYTES, stream)
        where = (self._kernel, blocks, rows, 1, THREADS, 1, 1, 0, stream)
        if blocks > 1:
            call(driver.cuLaunchCooperativeKernel, *where, arguments)
        else:
            call(driver.cuLaunchKernel, *where, arguments, 0)

    def close(self) -> None:
        """Free the device's memory; nothing that was launched may still be running."""
        call(driver.cuMemFree, self._workspace)
        call(driver.cuMemFree, self._parameters)
        call(driver.cuModuleUnload, self._module)


def blocks_of_a_row(rows: int, vocab: int, processors: int) -> int:
    """Return how many blocks share a row: all are resident at once, with a token a thread."""
    return max(1, min(processors // rows, -(-vocab // THREADS)))


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call the CUDA driver and return what it gives; raises EngineError that says which call."""
    status, *results = function(*arguments)
    if status:
        raise EngineError(
            f"{function.__name__} failed with {status.name}: close the model and load it again, in "
            "a new process if that fails too."
        )
    return results[0] if len(results) == 1 else tuple(results)
