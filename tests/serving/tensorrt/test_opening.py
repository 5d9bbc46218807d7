"""A machine's facts and a bundle's numbers meet in one refusal, before anything is opened."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import serving
from serving import UserError
from serving.bundle import file_info
from serving.tensorrt import opening
from serving.tensorrt.fit import Device, Driver
from serving.tensorrt.runtime_cache import runtime_cache_file
from tests.serving.tiny_bundle import make_bundle

SUMMARY = """{"profiles": [{"activation_bytes": 3000000000}, {"activation_bytes": null}]}"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    facts = {
        "driver": Driver(13010, 13050, 1),
        "device": Device("a GPU", "8.9", 4 * 10**9, 8 * 10**9),
    }
    monkeypatch.setattr(opening, "find_driver", lambda: facts["driver"])
    monkeypatch.setattr(opening, "find_device", lambda: facts["device"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7"))  # type: ignore[arg-type]
    return facts


def bundle_with(tmp_path: Path, **changes: Any) -> Path:
    engine = {
        "target": "tensorrt-rtx",
        "file": "model.engine",
        "weight_bytes": 2 * 10**9,
        "runtime_version": "1.7",
        "compute_capabilities": ["8.9"],
        "max_batch": 2,
        "max_sequence": 64,
    }
    contents = {"model.engine": "engine", "model.json": SUMMARY}
    files = {}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        files[name] = file_info(tmp_path / name).model_dump()
    bundle = make_bundle(tmp_path / "bundle", engines=[engine | changes], files=files)
    for name in contents:
        (tmp_path / name).rename(bundle / name)
    return bundle


def test_memory_counts_weights_kv_buffers_and_the_hungrier_profile(
    tmp_path: Path, machine: dict[str, Any]
) -> None:
    del machine
    message = (
        r"needs 5\.0 GB .*\(2\.0 GB of weights, 0\.0 GB of KV buffers, 3\.0 GB of activations\)"
    )
    with pytest.raises(UserError, match=message):
        serving.load(bundle_with(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime_version": "1.6"}, "for tensorrt-rtx 1.6, and 1.7 is installed"),
        ({"compute_capabilities": ["12.0"]}, "for compute capability 12.0, and a GPU has 8.9"),
        ({"max_sequence": 63}, "rows of 2,016 bytes"),
    ],
)
def test_each_fact_is_judged(
    tmp_path: Path, machine: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    del machine
    with pytest.raises(UserError, match=message):
        serving.load(bundle_with(tmp_path, **changes))


def test_a_driver_that_is_too_old_comes_first(tmp_path: Path, machine: dict[str, Any]) -> None:
    machine["driver"] = Driver(12080, 13050, 0, "cudaErrorInsufficientDriver")
    with pytest.raises(UserError, match=r"driver is for CUDA 12\.8, and CUDA 13\.0"):
        serving.load(bundle_with(tmp_path, runtime_version="1.6"))


@pytest.mark.parametrize("content", [b"engin", b"motors"])
def test_engines_that_were_cut_off_or_changed_are_not_opened(
    tmp_path: Path, content: bytes
) -> None:
    bundle = bundle_with(tmp_path)
    (bundle / "model.engine").write_bytes(content)
    with pytest.raises(UserError, match=r"'model\.engine' in .*(5 bytes instead of 6|checksum)"):
        serving.load(bundle)


def test_kernels_are_kept_where_the_user_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = runtime_cache_file("ab" * 32, "1.7")
    assert file == tmp_path / "export-llm" / "tensorrt-rtx" / f"{'ab' * 16}-1.7.cache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime_cache_file("ab" * 32, "1.7").parents[2] == tmp_path / ".cache"
