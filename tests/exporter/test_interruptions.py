"""Exports that are cut short: the disk fills up, the process is killed, another one is faster."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter import export as export_module
from exporter import plan as plan_module
from serving.bundle import open_bundle
from tests.exporter.commands import contents, refusal, run

COMMAND = [sys.executable, "-c", "from exporter.cli import main; main()"]


def start(checkpoint: Path, bundle: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*COMMAND, str(checkpoint), str(bundle), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_killed_and_run_again(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    process = start(checkpoint("llama"), bundle)
    wait_for(tmp_path / ".bundle.partial", process)
    assert "Another process is exporting to" in refusal(tmp_path, checkpoint("llama"), bundle)
    process.kill()
    process.communicate()
    assert list(contents(tmp_path)) == [".bundle.partial"]
    (tmp_path / ".bundle.partial" / "model.onnx.data").write_text("half")

    result = run(checkpoint("llama"), bundle)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{bundle}: passed; see ")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(bundle).manifest.parity["status"] == "passed"


def test_ctrl_c_while_an_engine_is_built(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = ("--target", "tensorrt-rtx", "--max-length", "512")
    process = start(checkpoint("llama"), tmp_path / "bundle", *options)
    wait_for(tmp_path / ".bundle.partial" / "model.tensorrt-rtx.engine", process)
    process.send_signal(signal.SIGINT)
    output = process.communicate()
    assert (process.returncode, *output) == (1, "", "\nAborted!\n")
    assert contents(tmp_path) == {}


def test_two_processes_at_once(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    processes = [start(checkpoint("llama"), bundle) for _ in range(2)]
    outcomes = [(*process.communicate(), process.returncode) for process in processes]
    (_, silence, success), (nothing, complaint, failure) = sorted(outcomes, key=lambda o: o[2])
    assert (success, silence) == (0, "")
    assert (failure, nothing) == (1, "")
    assert len(complaint.splitlines()) == 1
    # Whether it came while the other one worked or just after.
    assert "Another process is exporting to" in complaint or "exists: choose" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    open_bundle(bundle)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, which is less than any bundle."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_small_disk(
    checkpoint: Callable[[str], Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(small_disk, checkpoint("llama"), small_disk / "new" / "bundle")
    assert "needs 21 MB" in said
    assert said.endswith("has 0 MB free: make room or choose another disk.")

    # As if another program had filled it after that check.
    monkeypatch.setattr(plan_module, "check_disk", lambda *_: None)
    said = refusal(small_disk, checkpoint("llama"), small_disk / "new" / "bundle")
    assert said.endswith("is full: make room for 21 MB.")


def test_disk_that_fills_up(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no disk can be mounted: the write itself says that there is no space."""

    def no_space(partial: Path, *_: object) -> None:
        (partial / "model.onnx").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export_module, "_export_into", no_space)
    said = refusal(tmp_path, checkpoint("llama"), tmp_path / "new" / "bundle")
    assert said.endswith("is full: make room for 21 MB.")
