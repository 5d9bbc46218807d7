"""Traced graphs of several architectures, each made once."""

import functools
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.engines.pruning.decoders import Traced, trace


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Traced:
    """Return a function from an architecture to its standard graph, a new one each time."""

    directory = tmp_path_factory.mktemp("traced")

    @functools.cache
    def file_of(architecture: str) -> Path:
        file = directory / f"{architecture}.onnx"
        trace(checkpoint(architecture), file)
        return file

    return lambda architecture: ir.load(file_of(architecture))
