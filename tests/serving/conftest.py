"""Bundles that several folders' tests share."""

from pathlib import Path

import pytest

from tests.exports import export_bundle, once


@pytest.fixture(scope="session")
def trained_bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trained checkpoint, exported in float32 for the CPU."""

    def make(path: Path) -> None:
        export_bundle(trained_checkpoint, path)

    return once(tmp_path_factory, "trained/float32", make)
