"""Parts of the native runtime as shared libraries, with everything in them visible to ctypes."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.exports import once

NATIVE = ROOT / "serving" / "native"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")


def compile_library(library: Path, *sources: str, harness: Path | None = None) -> Path:
    """Compile these files of ``serving/native/src``, and one of the tests."""
    files = [NATIVE / "src" / source for source in sources]
    folders = [f"-I{NATIVE / 'src'}", f"-I{NATIVE / 'include'}"]
    files += [harness] if harness else []
    subprocess.run(["cc", *FLAGS, *folders, "-o", str(library), *map(str, files)], check=True)
    return library


def compiled(
    factory: pytest.TempPathFactory, name: str, *sources: str, harness: Path | None = None
) -> Path:
    """The library ``name``, compiled once a session."""

    def make(path: Path) -> None:
        compile_library(path, *sources, harness=harness)

    return once(factory, f"native/{name}.so", make)
