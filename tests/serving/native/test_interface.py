"""The library's interface in C, under AddressSanitizer and UBSan: checks.c says what is checked."""

import subprocess
from pathlib import Path

import pytest

from serving import kernels
from serving.native.library import onnxruntime_library
from tests.conftest import ROOT
from tests.exports import once
from tests.serving.native.building import SANITIZE, SOURCE, run

CHECKS = ROOT / "tests" / "serving" / "native" / "checks.c"


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        files = [*SOURCE.glob("src/*.c"), CHECKS]
        includes = [f"-I{SOURCE / folder}" for folder in ("include", "src/abi")]
        command = ["cc", "-std=gnu11", *SANITIZE, *includes, *files, "-o", path]
        subprocess.run([*command, "-lm", "-ldl", "-lpthread"], check=True)

    return once(tmp_path_factory, "native/checks", make)


@pytest.mark.parametrize("has_kernels", [False, True])
def test_checks_hold(checks: Path, tiny: Path, has_kernels: bool) -> None:
    if has_kernels and not kernels.library():
        pytest.skip("no kernels run on this processor")
    done = run(checks, tiny, onnxruntime_library(), kernels.library() if has_kernels else "")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 30  # allocations that were made to fail
