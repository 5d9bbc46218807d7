"""Whether engines of TensorRT can be opened here: this machine's facts, judged by fit.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import Bundle, EngineInfo
from serving.tensorrt.devices import find_device, find_driver
from serving.tensorrt.fit import (
    Needs,
    refuse_alignment,
    refuse_device,
    refuse_driver,
    refuse_memory,
    refuse_version,
)
from serving.tensorrt.library import load_library
from serving.tensorrt.runtime_cache import runtime_cache_file


@dataclass(frozen=True)
class Candidate:
    """An engine that is about to be opened with so many slots of such a capacity."""

    bundle: Bundle
    engine: EngineInfo
    slots: int
    capacity: int

    @property
    def needs(self) -> Needs:
        """Its memory on the GPU."""
        kv_bytes = self.bundle.manifest.graph.kv_bytes_per_token
        return Needs(
            weights=self.engine.weight_bytes,
            kv_cache=self.slots * self.capacity * kv_bytes,
            activations=_activation_bytes(self.bundle, self.engine),
        )


def refuse_unfit(candidates: Sequence[Candidate]) -> None:
    """Raise UserError unless all candidates together can be opened here; nothing is opened."""
    refuse_driver(find_driver())
    for candidate in candidates:
        refuse_version(candidate.engine, load_library(candidate.engine.target).__version__)
    device = find_device()
    for candidate in candidates:
        engine, graph = candidate.engine, candidate.bundle.manifest.graph
        refuse_device(engine, device)
        refuse_alignment(engine, graph, candidate.slots, candidate.capacity)
    refuse_memory([each.needs for each in candidates], candidates[0].slots, device)


def kept_kernels(bundle: Bundle, engine: EngineInfo) -> Path:
    """Where TensorRT-RTX keeps what it compiles for an engine."""
    return runtime_cache_file(bundle.manifest.files[engine.file].sha256, engine.runtime_version)


def _activation_bytes(bundle: Bundle, engine: EngineInfo) -> int:
    """What the builder said of the hungrier profile; 0 where it said nothing."""
    summary = bundle.file(f"{engine.file.removesuffix('.engine')}.json")
    if summary is None:
        return 0
    profiles = json.loads(summary.read_bytes())["profiles"]
    return max((profile["activation_bytes"] or 0 for profile in profiles), default=0)
