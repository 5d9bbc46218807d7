"""What pip compiles is what CMake builds."""

import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_pip_compiles_all_of_the_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = {each["name"]: each for each in project["tool"]["setuptools"]["ext-modules"]}
    listed = modules["serving.native.runtime"]
    folder = ROOT / "serving" / "native"
    sources = {str(path.relative_to(ROOT)) for path in folder.glob("src/*.c")}
    headers = {str(path.relative_to(ROOT)) for path in folder.glob("*/*.h")}
    headers |= {str(path.relative_to(ROOT)) for path in folder.glob("src/abi/*.h")}
    assert set(listed["sources"]) == sources
    assert set(listed["depends"]) == headers


def test_the_runtime_is_small(prefix: Path, tmp_path: Path) -> None:
    """What is installed beside ONNX Runtime: the library, llm-run and the kernels."""
    own = find_spec("serving.kernels.cpu")
    if own is None or own.origin is None:
        pytest.skip("no kernels were compiled")
    sizes = {}
    for file in (prefix / "lib/libllm_runtime.so", prefix / "bin/llm-run", Path(own.origin)):
        copy = shutil.copy(file, tmp_path)
        subprocess.run(["strip", copy], check=True)
        sizes[file.name] = Path(copy).stat().st_size
    assert sum(sizes.values()) < 500_000, sizes
