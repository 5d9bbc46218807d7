"""Where a step's inputs and logits lie: in page-locked host memory, and the same on the device."""

from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import DType
from serving.engine import IntArray
from serving.kv_cache import STORAGE
from serving.tensorrt.bindings import lay_out_inputs
from serving.tensorrt.cuda import Memory, call, runtime_api


class Staging:
    """Memory for steps of up to ``rows`` rows of ``tokens`` tokens, ``positions`` logits a row."""

    def __init__(
        self,
        memory: Memory,
        *,
        rows: int,
        tokens: int,
        positions: int,
        vocab_size: int,
        dtype: DType,
    ) -> None:
        self.layout = lay_out_inputs(rows, tokens, positions)
        self._vocab_size = vocab_size
        logits_bytes = rows * positions * vocab_size * STORAGE[dtype].itemsize
        self.inputs = memory.zeros(self.layout.nbytes)
        self.logits = memory.zeros(logits_bytes)
        self.puts = 0  # how often inputs were written
        self._host_inputs = memory.pinned(self.layout.nbytes)
        self._host_logits = memory.pinned(logits_bytes).view(STORAGE[dtype])

    def put(
        self, input_ids: IntArray, past_lengths: IntArray, logits_positions: IntArray, stream: Any
    ) -> None:
        """Write a step's inputs and enqueue their copy to the device.

        The copy of the step before must be over.
        """
        self.puts += 1
        for offset, array in (
            (self.layout.input_ids, input_ids),
            (self.layout.past_lengths, past_lengths),
            (self.layout.logits_positions, logits_positions),
        ):
            block = self._host_inputs[offset : offset + array.size * np.dtype(np.int64).itemsize]
            block.view(np.int64)[:] = array.ravel()
        kind = runtime_api().cudaMemcpyKind.cudaMemcpyHostToDevice
        origin = self._host_inputs.ctypes.data
        call("cudaMemcpyAsync", self.inputs, origin, self.layout.nbytes, kind, stream)

    def fetch(self, rows: int, positions: int, stream: Any) -> npt.NDArray[Any]:
        """Enqueue the copy of the logits to the host and return where they will be.

        [rows, positions, vocab] as stored, valid once the stream got there and until the next step.
        """
        logits = self._host_logits[: rows * positions * self._vocab_size]
        kind = runtime_api().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", logits.ctypes.data, self.logits, logits.nbytes, kind, stream)
        return logits.reshape(rows, positions, self._vocab_size)
