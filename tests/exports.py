"""Exporting in tests: through the product's own path, once a session, shared by all workers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from exporter.export import Request, export


class NoDisplay:
    """Shows no stages."""

    def start(self, name: str) -> None:
        pass

    def progress(self, phase: str, done: float) -> None:
        pass


def export_bundle(checkpoint: Path, bundle: Path, **options: Any) -> Path:
    """Export ``checkpoint`` as ``export-llm`` does and return the bundle."""
    export(Request(model=str(checkpoint), bundle=bundle, **options), NoDisplay())
    return bundle


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """The one temporary directory of this session that all its workers see."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path ``name`` in the shared directory, made by the first worker that asks for it."""
    path = shared_directory(factory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            make(path)
    return path
