"""The native runtime as CMake builds and installs it, once a session."""

import os
import subprocess
from pathlib import Path

import pytest

from serving.native.library import onnxruntime_library
from tests.conftest import ROOT
from tests.exports import once

SOURCE = ROOT / "serving" / "native"
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def installed(factory: pytest.TempPathFactory) -> Path:
    """A prefix with bin/llm-run, lib and include; without kernels, which pip compiled."""

    def make(prefix: Path) -> None:
        build = prefix.with_name("native-build")
        options = ["-DLLM_KERNELS=OFF", f"-DCMAKE_INSTALL_PREFIX={prefix}"]
        for arguments in (
            ["-S", SOURCE, "-B", build, *options],
            ["--build", build],
            ["--install", build],
        ):
            subprocess.run(["cmake", *arguments], check=True, capture_output=True)

    return once(factory, "native/prefix", make)


def run(
    program: Path, *arguments: object, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program on the wheel's ONNX Runtime."""
    found = {"LLM_ONNXRUNTIME_LIBRARY": str(onnxruntime_library())}
    return subprocess.run(
        [program, *map(str, arguments)],
        env=os.environ | found | environment,
        input=stdin,
        capture_output=True,
        text=True,
    )
