"""The TensorRT engine: prefill and decode over KV buffers on the device, updated in place."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.bundle import EngineInfo, GraphInfo
from serving.closing import Closing
from serving.engine import FloatArray, IntArray, as_float32
from serving.kv_cache import KVCache
from serving.tensorrt.bindings import (
    DECODE_PROFILE,
    PREFILL_PROFILE,
    bind_cache,
    bind_inputs,
    bind_logits,
    split_row,
)
from serving.tensorrt.context import StepContext
from serving.tensorrt.cuda import Memory, call, release, runtime_api
from serving.tensorrt.deserialized import DeserializedEngine
from serving.tensorrt.staging import Staging

if TYPE_CHECKING:
    from serving.tensorrt.decode_loop import DecodeLoop

# Positions of a prompt's step that get logits; of more, the step is split.
LOGITS_ROOM = 64


class TensorrtEngine(Closing):
    """A decoder in TensorRT or TensorRT-RTX with ``slots`` rows of KV cache on CUDA's device 0.

    Everything is allocated when it is opened, but for the small state of decode steps: the first
    of each number of rows is captured as a CUDA graph, unless ``cuda_graphs`` is False.
    ``runtime_cache`` is a file that TensorRT-RTX keeps compiled kernels in. An engine may be opened
    again after ``close``, in the same process.

    Raises UserError if the engine can't be opened here, EngineError if a call fails.
    """

    def __init__(
        self,
        file: Path,
        graph: GraphInfo,
        info: EngineInfo,
        *,
        slots: int,
        capacity: int,
        runtime_cache: Path | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self.vocab_size = graph.vocab_size
        self.weight_bytes = info.weight_bytes
        self._dtype = graph.dtype
        self._chunk = info.prefill_chunk or capacity
        self._cuda_graphs = cuda_graphs
        self._decoders: dict[tuple[int, int], StepContext] = {}
        # Freed in the reverse order, also if opening fails halfway.
        self._resources = ExitStack()
        try:
            self._open(file, graph, info, slots, capacity, runtime_cache)
        except BaseException:
            self._resources.close()
            raise

    def _open(
        self,
        file: Path,
        graph: GraphInfo,
        info: EngineInfo,
        slots: int,
        capacity: int,
        runtime_cache: Path | None,
    ) -> None:
        api = runtime_api()
        self._stream = call("cudaStreamCreateWithFlags", api.cudaStreamNonBlocking)
        self._resources.callback(release, "cudaStreamDestroy", self._stream)
        self._arrived = call("cudaEventCreateWithFlags", api.cudaEventDisableTiming)
        self._resources.callback(release, "cudaEventDestroy", self._arrived)
        memory = self._resources.enter_context(Memory(self._stream))
        self._engine = DeserializedEngine(file, info, graph, runtime_cache)
        self._resources.callback(self._engine.close)
        self.cache = KVCache(graph.layers, graph.cache_dtype, slots, capacity, memory.buffer)
        sizes: dict[str, Any] = {"vocab_size": graph.vocab_size, "dtype": graph.dtype}
        room = min(self._chunk, LOGITS_ROOM)
        self._prompt = Staging(memory, rows=1, tokens=self._chunk, positions=room, **sizes)
        self._newest = Staging(memory, rows=slots, tokens=1, positions=1, **sizes)
        self._room = room
        # The steps of all contexts run one after the other, so they may use the same memory.
        self._activations = memory.zeros(self._engine.activation_bytes)
        self.chooser = self._open_chooser(memory)
        self._prefiller = self._engine.context(
            PREFILL_PROFILE, self._activations, self._stream, "LAZY"
        )
        self._resources.callback(self._close_contexts)
        call("cudaStreamSynchronize", self._stream)

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        """Run ``input_ids`` [n, sequence] against n slots; see Engine.step.

        More tokens than the engine's prefill chunk run in several steps. Returns logits
        [n, k, vocab]. Raises ValueError if the tokens don't fit into the cache.
        """
        rows, tokens = input_ids.shape
        if int(past_lengths.max()) + tokens > self.cache.capacity:
            raise ValueError(f"the tokens don't fit into a capacity of {self.cache.capacity}")
        if rows > 1 and tokens > 1:
            raise ValueError("more than one new token per row goes one row at a time")
        if tokens == 1 and logits_positions.shape[1] == 1:
            return self._decode(input_ids, past_lengths, logits_positions, first_slot)
        return self._prefill(input_ids, past_lengths, logits_positions, first_slot)

    def _open_chooser(self, memory: Memory) -> "DecodeLoop":
        # Its kernels need CUDA's driver, which is known to be there only by now.
        from serving.tensorrt.decode_loop import DecodeLoop
        from serving.tensorrt.sampling.sampler import DeviceSampler

        sampler = DeviceSampler(self.cache.slots, self.vocab_size, self._dtype)
        self._resources.callback(sampler.close)
        loop = DecodeLoop(self._enqueue_decode, self._newest, sampler, memory, self._stream)
        self._resources.callback(loop.close)
        return loop

    def _decode(
        self, input_ids: IntArray, past_lengths: IntArray, logits_positions: IntArray, slot: int
    ) -> FloatArray:
        """Run one token of each row."""
        rows = len(input_ids)
        self._newest.put(input_ids, past_lengths, logits_positions, self._stream)
        self._enqueue_decode(rows, slot)
        return self._logits(self._newest, rows, 1)

    def _enqueue_decode(self, rows: int, slot: int = 0) -> None:
        """Enqueue a decode step over the newest tokens: the captured one, if there is one."""
        context = self._decoder(slot, rows)
        if context.is_captured:
            context.launch()
            return
        self._enqueue(context, self._newest, slot, (rows, 1, 1))
        if self._cuda_graphs:
            context.capture()

    def _decoder(self, first_slot: int, rows: int) -> StepContext:
        """The context of decode steps over these slots, whose addresses never change."""
        key = (first_slot, rows)
        if key not in self._decoders:
            self._decoders[key] = self._engine.context(
                DECODE_PROFILE, self._activations, self._stream, "EAGER"
            )
        return self._decoders[key]

    def _prefill(
        self, input_ids: IntArray, past_lengths: IntArray, logits_positions: IntArray, slot: int
    ) -> FloatArray:
        """Run one row's tokens, in chunks that the engine takes."""
        wanted = logits_positions[0]
        logits = np.empty((1, len(wanted), self.vocab_size), np.float32)
        for part, indices in split_row(input_ids.shape[1], wanted, self._chunk, self._room):
            # The engine gives logits of one position at least.
            positions = wanted[indices] - part.start if len(indices) else np.zeros(1, np.int64)
            ids = input_ids[:, part]
            self._prompt.put(ids, past_lengths + part.start, positions, self._stream)
            shape = (1, ids.shape[1], len(positions))
            self._enqueue(self._prefiller, self._prompt, slot, shape)
            if len(indices):
                logits[:, indices] = self._logits(self._prompt, 1, len(positions))
            else:
                self._wait()  # the staging's memory is the next chunk's too
        return logits

    def _enqueue(
        self, context: StepContext, staging: Staging, slot: int, shape: tuple[int, int, int]
    ) -> None:
        """Bind and enqueue a step of so many rows, tokens and positions."""
        context.bind(bind_inputs(staging.layout, staging.inputs, *shape))
        context.bind(bind_cache(self.cache, slot, shape[0]))
        context.bind([bind_logits(staging.logits)])
        context.enqueue()

    def _logits(self, staging: Staging, rows: int, positions: int) -> FloatArray:
        """Wait for the logits of the enqueued step; a copy [rows, positions, vocab]."""
        stored: npt.NDArray[Any] = staging.fetch(rows, positions, self._stream)
        self._wait()
        # What is page-locked is gone after close.
        return as_float32(stored.copy() if self._dtype == "float32" else stored, self._dtype)

    def _wait(self) -> None:
        """Wait for all that is enqueued."""
        call("cudaEventRecord", self._arrived, self._stream)
        call("cudaEventSynchronize", self._arrived)

    def _close_contexts(self) -> None:
        release("cudaStreamSynchronize", self._stream)
        for context in (self._prefiller, *self._decoders.values()):
            context.close()
        self._decoders.clear()

    def close(self) -> None:
        """Free the engine, its contexts and all memory."""
        self._resources.close()
        if hasattr(self, "cache"):
            self.cache.buffers.clear()
