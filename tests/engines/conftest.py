"""Graphs of tiny decoders, each traced once a session."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from engines.standard import optimize
from tests.engines.pruning.decoders import Traced, trace
from tests.engines.quantization.decoders import standard_graph
from tests.exports import once


@pytest.fixture(scope="session")
def decoder(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[..., ir.Model]:
    """Return a function from an architecture to its standard graph, a new one each time.

    Projections are merged unless ``merged`` is false.
    """

    def load(architecture: str, *, merged: bool = True) -> ir.Model:
        def make(path: Path) -> None:
            ir.save(standard_graph(checkpoint(architecture)), path)

        model = ir.load(once(tmp_path_factory, f"standard/{architecture}.onnx", make))
        if merged:
            optimize(model)
        return model

    return load


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Traced:
    """Return a function from an architecture to its standard graph, a new one each time."""

    def load(architecture: str) -> ir.Model:
        name = f"decoders/{architecture}.onnx"
        return ir.load(
            once(tmp_path_factory, name, lambda file: trace(checkpoint(architecture), file))
        )

    return load
