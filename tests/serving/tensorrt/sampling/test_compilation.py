"""The kernels compile for every kind of GPU that is served, without one."""

from pathlib import Path

import pytest

from serving.errors import UserError
from serving.tensorrt.sampling import compilation
from serving.tensorrt.sampling.compilation import compile_source, kernels, source

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_source_compiles_without_a_warning(capability: tuple[int, int]) -> None:
    cubin, log = compile_source(source(), capability)
    assert log == ""
    assert [ord(bytes([value])) for value in (0, 32)] == [0, 32], "a shared byte was written to"
    assert cubin.startswith(b"\x7fELF")
    for dtype in ("float32", "float16", "bfloat16"):
        assert f".text.sample_{dtype}".encode() in cubin


def test_warnings_are_in_the_log() -> None:
    _, log = compile_source("__global__ void idle() { int unused; }", (8, 0))
    assert "unused" in log


def test_a_wrong_source_says_where() -> None:
    with pytest.raises(RuntimeError, match=r"sampling\.cu\(1\): error"):
        compile_source("__global__ void wrong() { nowhere(); }", (8, 0))


def test_a_capability_that_nvrtc_lacks_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"has no sm_25, .*: update nvidia-cuda-nvrtc\.$"):
        compile_source(source(), (2, 5))


def test_kernels_are_compiled_once_for_a_source_and_a_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled: list[str] = []

    def compile_for(text: str, capability: tuple[int, int]) -> tuple[bytes, str]:
        compiled.append(text)
        return f"{len(text)} {capability}".encode(), ""

    monkeypatch.setattr(compilation, "compile_source", compile_for)
    first = kernels((8, 0))
    assert kernels((8, 0)) == first
    assert len(compiled) == 1
    assert kernels((8, 6)) != first
    monkeypatch.setattr(compilation, "source", lambda: "another source")
    assert kernels((8, 0)) != first
    assert len(compiled) == 3
    assert sorted(p.suffix for p in (tmp_path / "export-llm").iterdir()) == [".cubin"] * 3


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export-llm").write_text("a file where the directory would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation, "compile_source", lambda *_: (b"cubin", ""))
    assert kernels((8, 0)) == b"cubin"
