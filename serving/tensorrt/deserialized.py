"""An engine file made into an engine: deserialised, checked, with contexts of one memory."""

import mmap
import re
from pathlib import Path
from typing import Any, Literal

from serving.bundle import EngineInfo, GraphInfo
from serving.contract import (
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    past_name,
    present_name,
)
from serving.errors import EngineError, UserError
from serving.tensorrt.context import StepContext
from serving.tensorrt.library import load_library
from serving.tensorrt.log import make_log
from serving.tensorrt.runtime_cache import load_runtime_cache, save_runtime_cache

# When TensorRT-RTX compiles kernels for a new shape: beside steps that use general ones meanwhile,
# or before the first step of that shape.
Compilation = Literal["LAZY", "EAGER"]


class DeserializedEngine:
    """An engine on the GPU, with its weights there but no other memory.

    ``runtime_cache`` is where TensorRT-RTX keeps compiled kernels. Raises UserError where the
    engine can't be loaded or isn't what the manifest says.
    """

    def __init__(
        self, file: Path, info: EngineInfo, graph: GraphInfo, runtime_cache: Path | None
    ) -> None:
        self._library = load_library(info.target)
        self.log = make_log(self._library)
        self.log.clear()
        self._runtime = _start(self._library, self.log, info)
        self._engine = _deserialize(self._library, self._runtime, self.log, file, info)
        _refuse_other_graph(self._engine, file, info, graph)
        self._cache_file = runtime_cache
        self._cache: Any = None
        if info.target == "tensorrt-rtx" and runtime_cache is not None:
            self._cache = self._engine.create_runtime_config().create_runtime_cache()
            load_runtime_cache(self._cache, runtime_cache)
        self._is_rtx = info.target == "tensorrt-rtx"

    @property
    def activation_bytes(self) -> int:
        """Memory that a step of any profile takes; contexts on one stream share it."""
        return int(self._engine.device_memory_size_v2)

    def context(
        self, profile: int, activations: int, stream: Any, compilation: Compilation
    ) -> StepContext:
        """Make a context for steps of one profile, with its activations at that address."""
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._is_rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            strategies = self._library.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, compilation)
            if self._cache is not None:
                config.set_runtime_cache(self._cache)
            execution = self._engine.create_execution_context(config)
        else:
            execution = self._engine.create_execution_context(strategy)
        if execution is None:
            reason = self.log.errors[-1] if self.log.errors else "it gives no reason"
            raise EngineError(
                f"TensorRT can't make a context ({reason}): close what else uses the GPU."
            )
        return StepContext(execution, profile, activations, self.log, stream)

    def close(self) -> None:
        """Keep what was compiled, and free the engine; its contexts must be closed before."""
        if self._cache is not None and self._cache_file is not None:
            save_runtime_cache(self._cache, self._cache_file)
        self._cache = self._engine = self._runtime = None


def _start(library: Any, log: Any, info: EngineInfo) -> Any:
    try:
        runtime = library.Runtime(log)
    except TypeError as error:  # what the bindings make of a runtime that TensorRT didn't give
        raise _not_loaded(library, log, info) from error
    runtime.engine_host_code_allowed = info.version_compatible
    return runtime


def _deserialize(library: Any, runtime: Any, log: Any, file: Path, info: EngineInfo) -> Any:
    """Load an engine; the file is mapped, so that host memory holds no copy of the weights."""
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:
        engine = runtime.deserialize_cuda_engine(mapped)
    if engine is None:
        raise _not_loaded(library, log, info)
    return engine


def _not_loaded(library: Any, log: Any, info: EngineInfo) -> UserError:
    reason = _in_short(log.errors[-1]) if log.errors else "no reason given"
    return UserError(
        f"{info.target} {library.__version__} can't load {info.file} here ({reason}): see what "
        "serve-llm doctor says, or export the model again for this machine."
    )


def _in_short(error: str) -> str:
    """CUDA's own words, where an error has them."""
    found = re.search(r"cudaError \d+: [^()]+", error)
    return found[0] if found else error


def _refuse_other_graph(engine: Any, file: Path, info: EngineInfo, graph: GraphInfo) -> None:
    """The engine has the contract's tensors, the manifest's capacity and both profiles."""
    expected = {INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, LOGITS}
    for layer in range(len(graph.layers)):
        expected |= {name(layer, part) for name in (past_name, present_name) for part in PARTS}
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    is_other = names != expected or engine.num_optimization_profiles != 2
    if not is_other:
        capacity = engine.get_tensor_shape(past_name(0, "key"))[2]
        is_other = info.max_sequence is not None and capacity != info.max_sequence
    if is_other:
        raise UserError(
            f"{file.name} is not the engine that bundle.json describes: export the model again."
        )
