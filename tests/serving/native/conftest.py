"""The native runtime, built, and bundles for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.native import library
from tests.serving.native.building import installed
from tests.serving.native.compiled import compiled
from tests.serving.native.native_tokenizer import HARNESS, SOURCES
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The installed runtime, which serving.native finds too."""
    path = installed(tmp_path_factory)
    before = os.environ.get(library.LIBRARY)
    os.environ[library.LIBRARY] = str(path / "lib" / "libllm_runtime.so")
    library.library.cache_clear()
    yield path
    os.environ.pop(library.LIBRARY)
    if before is not None:
        os.environ[library.LIBRARY] = before
    library.library.cache_clear()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A bundle of one layer and a vocabulary of letters."""
    return make_bundle(tmp_path / "tiny")


@pytest.fixture(scope="session")
def tokenizer_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer, with a harness for ctypes."""
    return compiled(tmp_path_factory, "tokenizer", *SOURCES, harness=HARNESS)
