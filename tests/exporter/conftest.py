"""A traced graph, made once, for tests that damage it."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from exporter import export as export_module
from exporter.export import Request, plan_export
from tests.exports import once


@pytest.fixture(scope="session")
def traced(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[[], ir.Model]:
    """Return a function that returns the standard graph of mistral, a new one each time."""

    def make(path: Path) -> None:
        request = Request(model=str(checkpoint("mistral")), bundle=path)
        ir.save(export_module._trace(*plan_export(request)).model, path)

    file = once(tmp_path_factory, "damaged/mistral.onnx", make)
    return lambda: ir.load(file)
