"""Parts of the native runtime as shared libraries, with everything in them visible to ctypes."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.exports import once

SOURCES = ROOT / "serving" / "native" / "src"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")


def compiled(factory: pytest.TempPathFactory, name: str, *sources: str) -> ctypes.CDLL:
    """The library ``name`` of these files of ``serving/native/src``."""

    def make(path: Path) -> None:
        files = [str(SOURCES / source) for source in sources]
        subprocess.run(["cc", *FLAGS, "-o", str(path), *files], check=True)

    return ctypes.CDLL(str(once(factory, f"native/{name}.so", make)))
