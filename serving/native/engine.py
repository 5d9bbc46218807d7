"""The native engine: ONNX Runtime by its C interface, the same graph on the same kind of memory."""

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving import kernels
from serving.bundle import CacheDType, GraphInfo
from serving.closing import Closing
from serving.engine import FloatArray, IntArray
from serving.kv_cache import STORAGE, HostBuffer, KVCache, Shape, aligned_zeros
from serving.native.library import (
    Error,
    ModelOptions,
    SessionOptions,
    check,
    library,
    onnxruntime_library,
)


class NativeEngine(Closing):
    """A decoder graph in libllm_runtime with ``slots`` rows of ``capacity`` tokens of KV cache.

    ``bundle`` is its directory, whose checksums aren't compared. See OnnxRuntimeEngine, which
    gives the same tokens, for the parameters.

    Raises UserError if the library isn't there, doesn't run this kind of bundle, the graph can't
    be opened or the KV buffers don't fit into memory.
    """

    chooser = None

    def __init__(
        self,
        bundle: Path,
        graph: GraphInfo,
        *,
        slots: int,
        capacity: int,
        weight_bytes: int = 0,
        threads: int | None = None,
        prepack: bool = False,
    ) -> None:
        self.vocab_size = graph.vocab_size
        self.weight_bytes = weight_bytes
        self._library = library()
        self._error = Error()
        self._model, self._session = c_void_p(), c_void_p()
        own_kernels = kernels.library()
        options = ModelOptions(
            onnxruntime=str(onnxruntime_library()).encode(),
            kernels=str(own_kernels).encode() if own_kernels else b"",
            threads=threads or 0,
            skip_checksums=True,
            prepack=prepack,
            without_tokenizer=True,
        )
        rows = SessionOptions(capacity=capacity, rows=slots)
        try:
            self._check(
                self._library.llm_model_open(
                    str(bundle).encode(), byref(options), byref(self._model), byref(self._error)
                )
            )
            self._check(
                self._library.llm_session_create(
                    self._model, byref(rows), byref(self._session), byref(self._error)
                )
            )
        except BaseException:
            self.close()
            raise
        buffers = self._buffers(len(graph.layers))
        self.cache = KVCache(
            graph.layers,
            graph.cache_dtype,
            slots,
            capacity,
            lambda shape, dtype: _LibraryBuffer(next(buffers), shape, dtype),
        )
        self._logits = aligned_zeros((slots, 1, graph.vocab_size), np.float32)

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        """Run ``input_ids`` [n, sequence] against n slots; see Engine.step.

        Returns logits [n, k, vocab]. Raises ValueError if the tokens don't fit into the cache.
        """
        n, sequence = input_ids.shape
        picked = logits_positions.shape[1]
        logits = self._logits_buffer(n, picked)
        self._check(
            self._library.llm_session_step(
                self._session,
                first_slot,
                n,
                sequence,
                _address(input_ids),
                _address(past_lengths),
                picked,
                _address(logits_positions),
                logits.ctypes.data,
                self._error,
            )
        )
        return logits

    def _logits_buffer(self, n: int, picked: int) -> FloatArray:
        if picked == 1:
            return self._logits[:n]
        return aligned_zeros((n, picked, self.vocab_size), np.float32)

    def _buffers(self, layers: int) -> Iterator[int]:
        """Addresses of the library's KV buffers, in the order of KVCache's."""
        sizes = [c_size_t() for _ in range(3)]
        for layer in range(layers):
            for part in range(2):
                yield self._library.llm_session_cache(
                    self._session, layer, part, *(byref(size) for size in sizes)
                )

    def _check(self, status: int) -> None:
        check(status, self._error)

    def close(self) -> None:
        """Free the session and the KV buffers."""
        self._library.llm_session_free(self._session)
        self._library.llm_model_close(self._model)
        self._session, self._model = c_void_p(), c_void_p()


class _LibraryBuffer(HostBuffer):
    """A buffer that the library allocated, seen as an array."""

    def __init__(self, address: int, shape: Shape, dtype: CacheDType) -> None:
        storage = STORAGE[dtype]
        nbytes = int(np.prod(shape)) * storage.itemsize
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        self.array = np.ctypeslib.as_array(memory).view(storage).reshape(shape)
        self.shape, self.address, self.nbytes = shape, address, nbytes


def _address(array: npt.NDArray[np.int64]) -> int:
    if array.dtype != np.int64 or not array.flags.c_contiguous:
        raise ValueError("a step's inputs must be contiguous int64 arrays")
    return array.ctypes.data
