"""Standard graphs of tiny decoders, each made once a session."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from engines.standard import optimize, simplify
from tests.conftest import Graphs
from tests.exports import once


@pytest.fixture(scope="session")
def simplified(tmp_path_factory: pytest.TempPathFactory, traced_graph: Graphs) -> Graphs:
    """Return a function from an architecture to its standard graph, a new one each time.

    Its weights are the checkpoint's.
    """

    def load(architecture: str) -> ir.Model:
        def make(path: Path) -> None:
            model = traced_graph(architecture)
            simplify(model)
            ir.save(model, path)

        return ir.load(once(tmp_path_factory, f"simplified/{architecture}.onnx", make))

    return load


@pytest.fixture(scope="session")
def decoder(simplified: Graphs) -> Callable[..., ir.Model]:
    """Return the same function, but projections are merged unless ``merged`` is false."""

    def load(architecture: str, *, merged: bool = True) -> ir.Model:
        model = simplified(architecture)
        if merged:
            optimize(model)
        return model

    return load
