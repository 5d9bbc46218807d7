"""Traced graphs of several architectures, each made once a session."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.engines.pruning.decoders import Traced, trace
from tests.exports import once


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Traced:
    """Return a function from an architecture to its standard graph, a new one each time."""

    def load(architecture: str) -> ir.Model:
        name = f"decoders/{architecture}.onnx"
        return ir.load(
            once(tmp_path_factory, name, lambda file: trace(checkpoint(architecture), file))
        )

    return load
