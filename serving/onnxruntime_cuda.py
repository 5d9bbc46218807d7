"""The ONNX Runtime engine on CUDA: KV memory on the GPU, decode steps as captured CUDA graphs.

A step that decodes one token of the first n slots reads its inputs from, and writes its logits to,
addresses that never change, so that ONNX Runtime may capture it once for each n and replay it
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview).
All other steps are bound and run one kernel at a time.

Its tests are marked gpu: they have not run on a GPU yet.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.bundle import DType, GraphInfo
from serving.closing import Closing
from serving.contract import (
    CUDA_MODEL_FILE,
    ELEMENT_TYPE,
    EMBEDDINGS,
    INPUT_IDS,
    INT64,
    LOGITS,
    LOGITS_POSITIONS,
    PAST_LENGTHS,
)
from serving.cuda import CudaBuffer, MirroredMemory
from serving.engine import FloatArray, IntArray, as_float32
from serving.errors import UserError
from serving.kv_cache import STORAGE, KVCache, aligned_zeros
from serving.onnxruntime import (
    PROVIDERS,
    Provider,
    bind_cache,
    bind_input,
    embeddings_of,
    open_session,
)

_DEVICE: Provider = "cuda"
_INPUTS = (INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS)
_ALIGNMENT = 256  # what CUDA's own allocations have

# ONNX Runtime's name for the graph that a run captures or replays; -1 is a run without one.
_GRAPH_ID = "gpu_graph_id"
_WITHOUT_GRAPH = "-1"

# What computes lengths and shapes, which belong on the CPU.
_OF_SHAPES = {
    *("Shape", "Size", "Cast", "Squeeze", "Unsqueeze", "Concat", "Gather", "Slice", "Range"),
    *("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "ReduceMax", "Equal", "Less", "Where"),
}

_CUDA_GRAPHS = {"enable_cuda_graph": "1"}


class OnnxRuntimeCudaEngine(Closing):
    """A decoder graph on CUDA device 0 with ``slots`` rows of ``capacity`` tokens of KV cache.

    ``on_cpu`` counts the operators that ONNX Runtime runs on the CPU instead; ``uncaptured`` says
    why decode steps aren't captured, or is None where they are.

    Raises UserError if the graph's precision has no attention on CUDA, the provider isn't
    installed, the graph can't be opened or the KV buffers don't fit into the GPU's memory.
    """

    chooser = None

    def __init__(
        self, file: Path, graph: GraphInfo, *, slots: int, capacity: int, weight_bytes: int = 0
    ) -> None:
        refuse_precision(graph)
        self.vocab_size = graph.vocab_size
        self.weight_bytes = weight_bytes
        self._dtype = graph.dtype
        self._element = ELEMENT_TYPE[graph.dtype]
        self._cache_element = ELEMENT_TYPE[graph.cache_dtype]
        self._session, self.uncaptured = _open(file)
        self.on_cpu = nodes_on_cpu(self._session)
        self.hidden_size, self._embeddings_dtype = embeddings_of(self._session)
        self.cache = KVCache(graph.layers, graph.cache_dtype, slots, capacity, CudaBuffer)
        self._stride = -(-slots * np.dtype(np.int64).itemsize // _ALIGNMENT) * _ALIGNMENT
        self._inputs = MirroredMemory(len(_INPUTS) * self._stride)
        self._row_bytes = graph.vocab_size * STORAGE[graph.dtype].itemsize
        self._logits = MirroredMemory(slots * self._row_bytes)
        self._bindings: dict[tuple[int, int, str], ort.IOBinding] = {}
        self._decodes: dict[int, ort.IOBinding] = {}
        if self.uncaptured is None:
            self._capture(file)

    @property
    def remarks(self) -> list[str]:
        """What makes this engine slower than it could be, a sentence each."""
        found = []
        if elsewhere := {op: count for op, count in self.on_cpu.items() if op not in _OF_SHAPES}:
            nodes = ", ".join(f"{count} {op}" for op, count in sorted(elsewhere.items()))
            found.append(
                f"ONNX Runtime has no CUDA kernel for {nodes} of this graph and runs them on the "
                "CPU, which copies their inputs and outputs at each step."
            )
        if self.uncaptured is not None:
            found.append(f"Decode steps run without a CUDA graph ({self.uncaptured}).")
        return found

    def _capture(self, file: Path) -> None:
        """Capture the step of one slot, or open the graph again without CUDA graphs.

        What it writes, at position 0 of slot 0, the slot's first sequence overwrites.
        """
        zeros = np.zeros((1, 1), np.int64)
        try:
            self.step(zeros, zeros[0], zeros)
        except Exception as error:  # ONNX Runtime's errors share no base class but this one
            self.uncaptured = str(error).splitlines()[0]
        else:
            return
        # The first session's weights must be gone before the second's come.
        self._decodes.clear()
        del self._session
        self._session = open_session(file.with_name(CUDA_MODEL_FILE), _DEVICE, None)

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
        self.cache.check_room(past_lengths, input_ids.shape[1])
        arrays = dict(zip(_INPUTS, (input_ids, past_lengths, logits_positions), strict=True))
        if first_slot == 0 and input_ids.shape[1] == logits_positions.shape[1] == 1:
            return self._decode(arrays, len(input_ids))
        shape = (*logits_positions.shape, self.vocab_size)
        return self._run(arrays, first_slot, LOGITS, shape, self._dtype)

    def embed(self, input_ids: IntArray, past_lengths: IntArray, first_slot: int = 0) -> FloatArray:
        """Run ``input_ids`` [n, sequence] against n slots; see EmbeddingEngine.embed."""
        self.cache.check_room(past_lengths, input_ids.shape[1])
        positions = np.zeros((len(input_ids), 1), np.int64)
        arrays = dict(zip(_INPUTS, (input_ids, past_lengths, positions), strict=True))
        shape = (*input_ids.shape, self.hidden_size or 0)
        return self._run(arrays, first_slot, EMBEDDINGS, shape, self._embeddings_dtype)

    def _decode(self, arrays: dict[str, IntArray], n: int) -> FloatArray:
        """Run one token of each of the first n slots through memory with fixed addresses."""
        for number, array in enumerate(arrays.values()):
            place = self._inputs.host[number * self._stride :][: array.nbytes]
            place.view(np.int64)[:] = array.ravel()
        self._inputs.upload()
        if n not in self._decodes:
            self._decodes[n] = self._bind_decode(arrays, n)
        self._session.run_with_iobinding(self._decodes[n], self._options(str(n)))
        self._logits.download(n * self._row_bytes)
        stored = self._logits.host[: n * self._row_bytes].view(STORAGE[self._dtype])
        return as_float32(stored.reshape(n, 1, self.vocab_size), self._dtype)

    def _bind_decode(self, arrays: dict[str, IntArray], n: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        bind_cache(binding, self.cache, _DEVICE, self._cache_element, 0, n)
        for number, (name, array) in enumerate(arrays.items()):
            address = self._inputs.address + number * self._stride
            binding.bind_input(name, _DEVICE, 0, INT64, array.shape, address)
        shape = (n, 1, self.vocab_size)
        binding.bind_output(LOGITS, _DEVICE, 0, self._element, shape, self._logits.address)
        return binding

    def _run(
        self,
        arrays: dict[str, IntArray],
        first_slot: int,
        output: str,
        shape: tuple[int, ...],
        dtype: DType,
    ) -> FloatArray:
        """Run any step for one output; ONNX Runtime copies it and the inputs itself."""
        n = shape[0]
        key = (first_slot, n, output)
        if key not in self._bindings:
            self._bindings[key] = self._session.io_binding()
            bind_cache(self._bindings[key], self.cache, _DEVICE, self._cache_element, first_slot, n)
        binding = self._bindings[key]
        for name, array in arrays.items():
            bind_input(binding, name, array)
        result: npt.NDArray[Any] = aligned_zeros(shape, STORAGE[dtype])
        binding.bind_output(output, "cpu", 0, ELEMENT_TYPE[dtype], shape, result.ctypes.data)
        self._session.run_with_iobinding(binding, self._options(_WITHOUT_GRAPH))
        return as_float32(result, dtype)

    def _options(self, graph_id: str) -> ort.RunOptions | None:
        if self.uncaptured is not None:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry(_GRAPH_ID, graph_id)
        return options

    def close(self) -> None:
        """Free the session and the memory on the GPU."""
        self._bindings.clear()
        self._decodes.clear()
        del self._session, self._inputs, self._logits
        self.cache.buffers.clear()


def refuse_precision(graph: GraphInfo) -> None:
    """Raise UserError where ONNX Runtime has no attention on CUDA for a graph's floats."""
    if graph.dtype == "float32":
        raise UserError(
            "ONNX Runtime's attention on CUDA takes no float32: export the model with --fp16 or "
            "--bf16, or open this bundle with provider='cpu'."
        )


def nodes_on_cpu(session: ort.InferenceSession) -> Counter[str]:
    """Count by operator what a session that recorded its assignment runs on the CPU."""
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == PROVIDERS["cpu"]
        for node in part.get_nodes()
    )


def _open(file: Path) -> tuple[ort.InferenceSession, str | None]:
    """Open the graph for CUDA graphs or, where it can't be captured, without, and say why."""
    for_cuda = file.with_name(CUDA_MODEL_FILE)
    if not for_cuda.exists():
        reason = f"the bundle has no {CUDA_MODEL_FILE}"
        return open_session(file, _DEVICE, None), reason
    try:
        return open_session(for_cuda, _DEVICE, None, provider_options=_CUDA_GRAPHS), None
    except UserError as error:
        return open_session(for_cuda, _DEVICE, None), str(error)
