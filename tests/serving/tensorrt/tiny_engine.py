"""The tiny graph as an engine on the GPU that isn't there."""

from pathlib import Path
from typing import Any

from serving.bundle import EngineInfo
from serving.tensorrt.engine import TensorrtEngine
from tests.serving.tiny_graph import graph_info, save_graph

CAPACITY, SLOTS, CHUNK = 16, 3, 4


def open_engine(directory: Path, **options: Any) -> TensorrtEngine:
    file = directory / "model.engine"
    if not file.exists():
        save_graph(file)
    info = EngineInfo(
        target="tensorrt-rtx",
        file=file.name,
        weight_bytes=1,
        runtime_version="1.7",
        max_batch=SLOTS,
        max_sequence=CAPACITY,
        prefill_chunk=CHUNK,
    )
    return TensorrtEngine(file, graph_info(), info, slots=SLOTS, capacity=CAPACITY, **options)
