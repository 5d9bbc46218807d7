"""Fixtures that every test may use: checkpoints, made once, and the GPU's absence as a reason."""

import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter import unrolling
from exporter.tracing import cache_layers
from tests.checkpoints import make_checkpoint
from tests.traces import traced_once
from tests.training import train_once

ROOT = Path(__file__).parents[1]

Graphs = Callable[[str], ir.Model]

# Tiny models gain nothing from threads, and workers of one machine would wait for each other's.
torch.set_num_threads(1)


@functools.cache
def why_no_gpu() -> str | None:
    """Return why tests can't use an NVIDIA GPU here, or None where they can."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 not found)"
    if error := cuda.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit returned {error})"
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that one worker runs alone come first, so that the others aren't done long before."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have every model's code traced once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unrolling, "trace", traced_once(unrolling.trace, tmp_path_factory))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture's name to its tiny checkpoint, made at first use."""
    directory = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def make(architecture: str) -> Path:
        return make_checkpoint(architecture, directory / architecture)

    return make


@pytest.fixture(scope="session")
def traced_graph(checkpoint: Callable[[str], Path]) -> Graphs:
    """Return a function from an architecture to its graph as traced in float32, new each time."""

    def load(architecture: str) -> ir.Model:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint(architecture), dtype=torch.float32
        ).eval()
        return unrolling.trace_unrolled(model, cache_layers(model))

    return load


@pytest.fixture(scope="session")
def trained_checkpoint() -> Path:
    """The small trained checkpoint, kept until the script that trains it changes."""
    return train_once()
