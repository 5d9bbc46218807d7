"""What a loaded engine says of itself, which takes a GPU: how its layers were fused, its memory."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bundle import EngineInfo
from serving.errors import UserError
from serving.tensorrt.library import load_library
from serving.tensorrt.log import make_log


@dataclass(frozen=True)
class LoadedEngine:
    """``layers`` as TensorRT's inspector describes them, activations of each profile in bytes."""

    layers: tuple[dict[str, Any], ...]
    activation_bytes: tuple[int, ...]


def inspect_loaded(file: Path, info: EngineInfo) -> LoadedEngine:
    """Load an engine and ask it. Raises UserError where it can't be loaded."""
    library = load_library(info.target)
    log = make_log(library)
    log.clear()
    try:
        runtime = library.Runtime(log)
        runtime.engine_host_code_allowed = info.version_compatible
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
    except TypeError:  # what the bindings make of a runtime that TensorRT didn't give
        engine = None
    if engine is None:
        reason = _in_short(log.errors[-1]) if log.errors else "no reason given"
        raise UserError(
            f"{info.target} can't load {file.name} here ({reason}): its layers are shown on a "
            "machine with a GPU that it was built for."
        )
    text = engine.create_engine_inspector().get_engine_information(
        library.LayerInformationFormat.JSON
    )
    described = json.loads(text)["Layers"]
    profiles = range(engine.num_optimization_profiles)
    return LoadedEngine(
        tuple(layer if isinstance(layer, dict) else {"Name": layer} for layer in described),
        tuple(engine.get_device_memory_size_for_profile_v2(index) for index in profiles),
    )


def _in_short(error: str) -> str:
    """CUDA's own words, where an error has them."""
    found = re.search(r"cudaError \d+: [^()]+", error)
    return found[0] if found else error
