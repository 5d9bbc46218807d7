"""What pip compiles is what CMake builds."""

import tomllib

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
