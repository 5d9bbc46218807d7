"""Parts of the native runtime, compiled once."""

from pathlib import Path

import pytest

from tests.serving.native.compiled import compiled
from tests.serving.native.native_tokenizer import HARNESS, SOURCES


@pytest.fixture(scope="session")
def tokenizer_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer, with a harness for ctypes."""
    return compiled(tmp_path_factory, "tokenizer", *SOURCES, harness=HARNESS)
