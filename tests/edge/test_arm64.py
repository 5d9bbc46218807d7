"""The arm64 package under emulation: it writes what the x86-64 package writes."""

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import serving
from scripts.edge.architectures import ARCHITECTURES
from scripts.edge.libraries import LIBRARY
from serving import kernels
from tests.edge.arm64_root import arm64_root, emulated
from tests.edge.conftest import unpacked_package
from tests.exporter.commands import run
from tests.exports import once

pytestmark = pytest.mark.xdist_group("edge")

PROMPTS = ("def main(", "import os\n\nclass Reader:\n    def __init__(self")
TOKENS = 16
CONTEXT = 24


def options(prompt: str) -> tuple[object, ...]:
    return ("--prompt", prompt, "-n", TOKENS, "--threads", 1, "--json")


def token_ids(output: str) -> list[int]:
    answer: dict[str, Any] = json.loads(output)
    ids: list[int] = answer["token_ids"]
    assert len(ids) == TOKENS
    return ids


@pytest.fixture(scope="module")
def root() -> Path:
    return arm64_root()


@pytest.fixture(scope="module")
def int4_bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        result = run(trained_checkpoint, path, "--int4")
        assert result.exit_code == 0, result.output

    return once(tmp_path_factory, "trained/int4", make)


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_arm64(root: Path, package: Path, prompt: str) -> list[int]:
    bundle = package / "bundle"
    return token_ids(output(emulated(root, package, "llm-run", *options(prompt), bundle)))


def here(package: Path, prompt: str) -> list[int]:
    return token_ids(output(list(map(str, [package / "bin/llm", *options(prompt)]))))


@pytest.mark.skipif(not ARCHITECTURES["x86-64"].is_here, reason="no x86-64 here")
def test_float32_gives_the_same_tokens(root: Path, trained_bundle: Path, tmp_path: Path) -> None:
    arm64 = unpacked_package(trained_bundle, tmp_path, "arm64")
    x86 = unpacked_package(trained_bundle, tmp_path, "x86-64")
    with serving.load(trained_bundle, threads=1) as model:
        for prompt in PROMPTS:
            ids = on_arm64(root, arm64, prompt)
            assert ids == here(x86, prompt)
            assert ids == model.generate(prompt, max_new_tokens=TOKENS).token_ids
        served = model.generate(PROMPTS[0], max_new_tokens=CONTEXT - len(model.encode(PROMPTS[0])))
        assert ask_service(root, arm64, tmp_path / "socket", PROMPTS[0]) == served.text


def ask_service(root: Path, package: Path, path: Path, prompt: str) -> str:
    """What the arm64 llm-serve answers."""
    command = emulated(root, package, "llm-serve", package / "bundle", CONTEXT, path)
    with subprocess.Popen(command) as process, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        while client.connect_ex(str(path)):  # not made yet, or not listened to
            assert process.poll() is None
            time.sleep(0.05)
        client.sendall(prompt.encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            text = answer.read().decode()
        process.kill()
    return text


NEARLY_EQUAL = 0.1
"""Nats between the likeliest token and one that a kernel for another processor may prefer.

Activations are quantised in each step, and every kernel rounds and sums in its own order. Over 16
prompts of 24 tokens the most seen was 0.038.
"""


def test_int4_gives_the_same_tokens_or_as_likely_ones(
    root: Path, int4_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm64 = unpacked_package(int4_bundle, tmp_path, "arm64")
    monkeypatch.setenv(kernels.CHOICE, "none")  # as there, ONNX Runtime's own
    with serving.load(int4_bundle, threads=1) as model:
        for prompt in PROMPTS:
            ids = on_arm64(root, arm64, prompt)
            behind = len(model.encode(prompt))
            score = model.score([*model.encode(prompt), *ids], logprobs=1)
            assert score.top is not None
            likeliest = [top[0][1] for top in score.top[behind - 1 :]]
            gaps = likeliest - score.logprobs[behind - 1 :]
            assert len(gaps) == TOKENS
            assert gaps.max() < NEARLY_EQUAL


@pytest.fixture
def binaries(root: Path, trained_bundle: Path, tmp_path: Path) -> Path:
    del root  # skips where nothing can be built
    return unpacked_package(trained_bundle, tmp_path, "arm64")


def test_programs_and_libraries_are_arm64s(binaries: Path) -> None:
    for name in ("bin/llm-run", "bin/llm-serve", "lib/libllm_runtime.so.1", LIBRARY):
        done = subprocess.run(
            ["aarch64-linux-gnu-readelf", "--file-header", "--dynamic", binaries / name],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "AArch64" in done.stdout
    assert not (binaries / "lib/libllm_kernels.so").exists()
    notices = (binaries / "licenses/onnxruntime/ThirdPartyNotices.txt").read_text()
    assert "protobuf" in notices  # not ours, and in its library
