"""The ONNX Runtime engine on the CPU: the graph bound to our own KV memory, updated in place."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.bundle import DType, GraphInfo
from serving.closing import Closing
from serving.contract import (
    ADAPTER_IDS,
    ELEMENT_TYPE,
    EMBEDDINGS,
    INPUT_IDS,
    INT64,
    LOGITS,
    LOGITS_POSITIONS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    cached_layers,
    cross_name,
    is_hidden,
    past_name,
    present_name,
)
from serving.engine import EncodedSource, FloatArray, IntArray, as_float32
from serving.errors import UserError
from serving.kernels import libraries, library
from serving.kv_cache import STORAGE, KVCache, SourceCache, aligned_zeros
from serving.lora import AdapterTables
from serving.pipeline import HiddenBuffer, HiddenStates
from serving.source_encoder import SourceEncoder

Provider = Literal["cpu", "cuda"]

PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


# After steps of so many tokens, memory that the graph's buffers took is given back.
_PROMPT = 32
_GIVE_BACK = ("memory.enable_memory_arena_shrinkage", "cpu:0")

_FLOATS: dict[str, DType] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}
_ELEMENTS = {STORAGE[name]: ELEMENT_TYPE[name] for name in _FLOATS.values()}

# Lets a session say which provider runs each node.
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"

# They would make FusedMatMul of products that aren't rows times weights, which ours isn't for.
_OTHER_PRODUCTS = ["MatmulTransposeFusion", "MatMulScaleFusion"]

# It joins a residual's Add and the normalisation behind it. On the CPU that operator takes many
# times as long as the two: see docs/benchmarks.md.
_SLOW_FUSIONS = ["SkipLayerNormFusion"]


class OnnxRuntimeEngine(Closing):
    """A decoder graph in ONNX Runtime with ``slots`` rows of ``capacity`` tokens of KV cache.

    ``graph`` describes the whole decoder; the file may have one stage of it (serving/pipeline.py).
    ``prepack`` copies float weights into the kernels' own layout: steps of several tokens get
    faster, opening slower, and the weights are no longer shared by processes. Integer weights are
    copied without being asked where our own kernels don't run. ``takes_turns`` says that other
    engines run between two steps of this one. ``adapters`` are LoRA's, for a graph that takes them;
    ``cache.adapter_ids`` says which a slot has. An encoder-decoder has an ``encoder`` file too, for
    sources of up to ``source_capacity`` tokens (default: the graph's most).

    Raises UserError if the graph can't be opened or the KV buffers don't fit into memory.
    """

    chooser = None

    def __init__(
        self,
        file: Path,
        graph: GraphInfo,
        *,
        slots: int,
        capacity: int,
        weight_bytes: int = 0,
        threads: int | None = None,
        prepack: bool = False,
        takes_turns: bool = False,
        adapters: AdapterTables | None = None,
        encoder: Path | None = None,
        source_capacity: int | None = None,
    ) -> None:
        self.vocab_size = graph.vocab_size
        self.weight_bytes = weight_bytes
        self._dtype = graph.dtype
        self._cache_element = ELEMENT_TYPE[graph.cache_dtype]
        prepack = prepack or _needs_packing(graph)
        self._session = open_session(
            file,
            "cpu",
            threads,
            prepack=prepack,
            float32=graph.dtype == "float32",
            float32_cache=graph.cache_dtype == "float32",
            takes_turns=takes_turns,
        )
        numbers = cached_layers(value.name for value in self._session.get_inputs())
        layers = [graph.layers[number] for number in numbers]
        source = None
        if graph.source is not None:
            longest = source_capacity or graph.source.max_length
            source = SourceCache(graph.source.layers, graph.dtype, slots, longest)
        self.cache = KVCache(
            layers, graph.cache_dtype, slots, capacity, first_layer=numbers[0], source=source
        )
        self._encoder = None
        if encoder is not None and source is not None:
            session = open_session(
                encoder, "cpu", threads, prepack=prepack, float32=graph.dtype == "float32"
            )
            self._encoder = SourceEncoder(session, source)
        self._adapters = adapters or AdapterTables(graph.lora, graph.dtype, {})
        self._takes_adapters = bool(graph.lora)
        tokens = max(slots, capacity)  # of several new tokens, rows go one by one
        self._hidden = {
            value.name: HiddenBuffer(value.shape[2:], _FLOATS[value.type], tokens)
            for value in self._session.get_outputs()
            if is_hidden(value.name)
        }
        self.hidden_size, self._embeddings_dtype = embeddings_of(self._session)
        self._logits = aligned_zeros((slots, 1, graph.vocab_size), STORAGE[graph.dtype])
        self._bindings: dict[tuple[int, int, str, bool], ort.IOBinding] = {}
        self._give_back = ort.RunOptions()
        self._give_back.add_run_config_entry(*_GIVE_BACK)

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
        hidden: HiddenStates | None = None,
    ) -> FloatArray:
        """Run ``input_ids`` [n, sequence] against n slots; see Engine.step.

        The last of several stages takes the ``hidden`` states that the one before gave. Returns
        logits [n, k, vocab]. Raises ValueError if the tokens don't fit into the cache.
        """
        binding = self._bound(input_ids, past_lengths, first_slot, hidden or {})
        bind_input(binding, LOGITS_POSITIONS, logits_positions)
        logits = self._logits_buffer(len(input_ids), logits_positions.shape[1])
        binding.bind_output(LOGITS, *_host_place(logits))
        self._run(binding, input_ids.shape[1])
        return as_float32(logits, self._dtype)

    def embed(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        first_slot: int = 0,
        hidden: HiddenStates | None = None,
    ) -> FloatArray:
        """Run ``input_ids`` [n, sequence] against n slots; see EmbeddingEngine.embed."""
        n, sequence = input_ids.shape
        binding = self._bound(input_ids, past_lengths, first_slot, hidden or {}, EMBEDDINGS)
        first = np.zeros((n, 1), np.int64)  # logits nobody reads are computed too: few, then
        bind_input(binding, LOGITS_POSITIONS, first)
        states = aligned_zeros(
            (n, sequence, self.hidden_size or 0), STORAGE[self._embeddings_dtype]
        )
        binding.bind_output(EMBEDDINGS, *_host_place(states))
        self._run(binding, sequence)
        return as_float32(states, self._embeddings_dtype)

    def encode(self, sources: Sequence[IntArray], first_slot: int) -> None:
        """Run the encoder on sources [n] for slots from the first on; see SourceEngine.encode."""
        assert self._encoder is not None, "not an encoder-decoder"
        self._encoder.run(sources, first_slot)

    def encode_ahead(self, sources: Sequence[IntArray]) -> Sequence[EncodedSource]:
        """Run the encoder on sources [n] in one batch; see SourceEngine.encode_ahead."""
        assert self._encoder is not None, "not an encoder-decoder"
        return self._encoder.ahead(sources)

    def hand_on(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        first_slot: int,
        hidden: HiddenStates,
    ) -> HiddenStates:
        """Run a stage that isn't the last; see Stage.hand_on."""
        binding = self._bound(input_ids, past_lengths, first_slot, hidden)
        given = {name: buffer.view(*input_ids.shape) for name, buffer in self._hidden.items()}
        for name, array in given.items():
            binding.bind_output(name, *_host_place(array))
        self._run(binding, input_ids.shape[1])
        return given

    def _bound(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        first_slot: int,
        hidden: HiddenStates,
        output: str = LOGITS,
    ) -> ort.IOBinding:
        """The binding of n slots for an output, with the inputs of all stages bound."""
        n, sequence = input_ids.shape
        self.cache.check_room(past_lengths, sequence)
        binding = self._binding(first_slot, n, output)
        bind_input(binding, INPUT_IDS, input_ids)
        bind_input(binding, PAST_LENGTHS, past_lengths)
        for name, array in hidden.items():
            binding.bind_input(name, *_host_place(array))
        return binding

    def _run(self, binding: ort.IOBinding, sequence: int) -> None:
        options = self._give_back if sequence >= _PROMPT else None
        self._session.run_with_iobinding(binding, options)

    def _logits_buffer(self, n: int, positions: int) -> npt.NDArray[Any]:
        if positions == 1:
            return self._logits[:n]
        return aligned_zeros((n, positions, self.vocab_size), STORAGE[self._dtype])

    def _binding(self, first_slot: int, n: int, output: str) -> ort.IOBinding:
        ids = self.cache.adapter_ids[first_slot : first_slot + n]
        adapted = self._takes_adapters and bool(ids.any())
        key = (first_slot, n, output, adapted)  # what was bound once is written in every run
        if key not in self._bindings:
            binding = self._session.io_binding()
            bind_cache(binding, self.cache, "cpu", self._cache_element, first_slot, n)
            if self.cache.source is not None:
                element = ELEMENT_TYPE[self._dtype]
                bind_source(binding, self.cache.source, element, first_slot, n)
            if self._takes_adapters:
                bind_input(binding, ADAPTER_IDS, ids)
                for name, table in self._adapters.inputs(adapted=adapted).items():
                    binding.bind_input(name, *_host_place(table))
            self._bindings[key] = binding
        return self._bindings[key]

    def close(self) -> None:
        """Free the session and the KV buffers."""
        self._bindings.clear()
        self.cache.buffers.clear()
        if self._encoder is not None:
            self._encoder.close()
        del self._session


def open_session(
    graph: Path | bytes,
    provider: Provider,
    threads: int | None,
    *,
    prepack: bool = False,
    float32: bool = False,
    float32_cache: bool = False,
    takes_turns: bool = False,
    provider_options: Mapping[str, str] = MappingProxyType({}),
) -> ort.InferenceSession:
    """Open a graph on one provider; raises UserError if that provider or the graph is unusable.

    ``float32`` says that all floats of its layers are, and ``float32_cache`` that those of its
    attention are: then our kernels for them may run. Of sessions that ``takes_turns``, threads stop
    at the end of a run: spinning on, they would hold the cores that the next session needs.
    ``provider_options`` are ONNX Runtime's.
    """
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise UserError(
            f"This ONNX Runtime has no {wanted}: install onnxruntime-gpu in place of onnxruntime, "
            "or open the bundle with provider='cpu'."
        )
    try:
        # Kernels for CUDA choose themselves which weights they pack.
        options = session_options(threads, prepack=prepack or provider == "cuda")
        if provider == "cuda":
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
            with redirect_stdout(sys.stderr):  # it prints what it can't load
                ort.preload_dlls()  # CUDA's libraries from the wheels beside onnxruntime-gpu
        options.add_session_config_entry("session.force_spinning_stop", str(int(takes_turns)))
        kernels = libraries() if provider == "cpu" else []
        disabled = list(_SLOW_FUSIONS) if provider == "cpu" else []
        if kernels:
            disabled += _register(kernels, options, float32=float32, float32_cache=float32_cache)
        session = ort.InferenceSession(
            graph,
            options,
            [(wanted, dict(provider_options))],
            disabled_optimizers=disabled,
            enable_fallback=0,  # which would open the graph on the CPU after an error
        )
    except Exception as error:  # ONNX Runtime's errors share no base class but this one
        reason = str(error).splitlines()[0]
        raise UserError(
            f"ONNX Runtime {ort.__version__} can't open the graph ({reason}): "
            "export the model again or install the version that bundle.json names."
        ) from error
    # A provider whose libraries are missing is only logged, and the CPU takes its place.
    if session.get_providers()[0] != wanted:
        raise UserError(
            f"{wanted} doesn't start here: see what serve-llm doctor says, or open the bundle with "
            "provider='cpu'."
        )
    return session


def session_options(threads: int | None, *, prepack: bool) -> ort.SessionOptions:
    """Options of every session; ``threads`` defaults to the physical cores we may run on."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    # The shapes of prefill and decode differ: a remembered pattern would keep prefill's peak. An
    # arena spares a prompt's layers from having each buffer's pages made anew; see _GIVE_BACK.
    options.enable_mem_pattern = False
    # Unpacked weights are used where the file is mapped, and memory holds them once.
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    # Over chunks of a prompt, GroupQueryAttention is a third faster with plain matrix products than
    # with its online softmax; single tokens cost the same. ONNX Runtime has no option but this.
    os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    return options


def _register(
    kernels: Sequence[Path], options: ort.SessionOptions, *, float32: bool, float32_cache: bool
) -> list[str]:
    """Let our own kernels run in place of ONNX Runtime's, and name optimisers that they forbid."""
    if float32:
        options.add_session_config_entry("export_llm.float32", "1")
    if float32_cache:
        options.add_session_config_entry("export_llm.float32_cache", "1")
    for path in kernels:
        options.register_custom_ops_library(str(path))
    return _OTHER_PRODUCTS if float32 else []


def _needs_packing(graph: GraphInfo) -> bool:
    """Whether ONNX Runtime's kernels for integers run, which are slow on weights as stored."""
    return graph.integer_activations or (graph.integer_weights and not library())


def physical_cores() -> int:
    """Count the physical cores that this process may run on."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


def bind_cache(
    binding: ort.IOBinding, cache: KVCache, device: Provider, element: int, first_slot: int, n: int
) -> None:
    """Bind past and present of ``n`` slots' rows to one address each: they are updated in place."""
    for layer, part in cache.buffers:
        address, shape = cache.rows(layer, part, first_slot, n)
        place = (device, 0, element, shape, address)
        binding.bind_input(past_name(layer, part), *place)
        binding.bind_output(present_name(layer, part), *place)


def bind_source(
    binding: ort.IOBinding, source: SourceCache, element: int, first_slot: int, n: int
) -> None:
    """Bind what ``n`` slots keep of their sources; nothing is copied."""
    for layer, part in source.cache.buffers:
        address, shape = source.cache.rows(layer, part, first_slot, n)
        binding.bind_input(cross_name(layer, part), "cpu", 0, element, shape, address)
    bind_input(binding, SOURCE_LENGTHS, source.lengths[first_slot : first_slot + n])


def bind_input(binding: ort.IOBinding, name: str, array: IntArray) -> None:
    """Bind an int64 array by address; on a GPU this is when its content is copied there."""
    if array.dtype != np.int64 or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous int64 array")
    binding.bind_input(name, "cpu", 0, INT64, array.shape, array.ctypes.data)


def _host_place(array: npt.NDArray[Any]) -> tuple[str, int, int, tuple[int, ...], int]:
    """Where an array of our own is, in ONNX Runtime's terms."""
    return "cpu", 0, _ELEMENTS[array.dtype], array.shape, array.ctypes.data


def embeddings_of(session: ort.InferenceSession) -> tuple[int | None, DType]:
    """How wide a graph's embeddings are, or None where it gives none, and their type."""
    for value in session.get_outputs():
        if value.name == EMBEDDINGS:
            return value.shape[2], _FLOATS[value.type]
    return None, "float32"
