"""Deploying to a real sshd: what is served is always a whole version that was checked."""

import json
import os
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from scripts.edge.package import Package
from serving.bundle import open_bundle
from serving.errors import UserError
from tests.edge.conftest import Device, Packed

pytestmark = pytest.mark.xdist_group("edge")

OLD, NEW = "1.0", "2.0"


def deployed(device: Device, command: str, package: Path, host: str = "device") -> dict[str, Any]:
    done = device.run(command, package, "--json", host=host)
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def without_rsync(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "rsync" else which(name))


@pytest.fixture(params=["rsync", "tar"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tar":
        without_rsync(monkeypatch)
    elif shutil.which("rsync") is None:
        pytest.skip("no rsync (Debian: rsync)")
    return str(request.param)


@pytest.mark.usefixtures("transport")
def test_deploy_update_rollback(device: Device, packed: Packed) -> None:
    old, new = packed(OLD), packed(NEW)
    first = deployed(device, "deploy", old)
    assert device.served() == f"{OLD}\n"
    assert first["sent"] == first["files"]
    assert first["bytes_sent"] > 0.9 * old.stat().st_size
    assert first["previous"] is None
    open_bundle(device.root / "current/bundle")  # what the device has is a bundle

    second = deployed(device, "update", new)
    assert device.served() == f"{NEW}\n"
    assert second["previous"] == first["current"]
    # What says its version: three programs and libraries, and the description.
    assert second["sent"] == 4
    assert second["bytes_sent"] < 20_000
    library = "lib/libonnxruntime.so.1"
    current, previous = device.root / "current", device.root / "previous"
    assert (current / library).samefile(previous / library)
    assert deployed(device, "update", new)["bytes_sent"] == 0

    assert device.run("rollback").exit_code == 0
    assert device.served() == f"{OLD}\n"
    assert device.run("rollback").exit_code == 0
    assert device.served() == f"{NEW}\n"

    third = deployed(device, "update", packed("3.0"))
    assert device.served() == "3.0\n"
    assert third["previous"] == second["current"]
    assert len(list((device.root / "versions").iterdir())) == 2
    assert not list((device.root / "incoming").iterdir())
    state = json.loads(device.run("status", "--json").stdout)
    assert (state["current"], state["previous"]) == (third["current"], second["current"])
    assert state["free_bytes"] == pytest.approx(shutil.disk_usage(device.root).free, rel=0.2)


@pytest.mark.usefixtures("transport")
def test_cut_anywhere_the_old_version_goes_on_serving(device: Device, packed: Packed) -> None:
    new = packed(NEW)
    deployed(device, "deploy", packed(OLD))
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(device.served())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        size = new.stat().st_size
        # In the handshake, before the first file, and in the middle of files.
        for cut in (100, 20_000, 60_000, size // 10, size // 4):
            failed = device.run("deploy", new, host=f"cut-{cut}")
            assert failed.exit_code == 1, (cut, failed.output)
            assert ("can't be reached" if cut == 100 else "was lost") in failed.stderr, cut
            assert device.served() == f"{OLD}\n"
    finally:
        done.set()
        watcher.join()
    assert seen == {f"{OLD}\n"}
    assert any((device.root / "incoming").rglob("*.so*")), "nothing was cut while files went"
    report = deployed(device, "deploy", new)
    assert device.served() == f"{NEW}\n"
    assert report["sent"] < report["files"], "what had come was sent again"


def tampered(package: Path, name: str, path: Path) -> Path:
    """A copy of a package in which one bit of one file is another."""
    with tarfile.open(package) as archive:
        member = archive.getmember(name)
    content = bytearray(package.read_bytes())
    content[member.offset_data + member.size // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.usefixtures("transport")
def test_a_tampered_file_is_refused(device: Device, packed: Packed, tmp_path: Path) -> None:
    deployed(device, "deploy", packed(OLD))
    wrong = tampered(packed(NEW), "bundle/model.onnx", tmp_path / "tampered.tar")
    refused = device.run("deploy", wrong)
    assert refused.exit_code == 1
    assert "bundle/model.onnx isn't what the package says" in refused.stderr
    assert device.served() == f"{OLD}\n"
    assert not list((device.root / "incoming").iterdir())


def test_a_version_that_does_not_run_there_is_not_served(device: Device, packed: Packed) -> None:
    deployed(device, "deploy", packed(OLD))
    refused = device.run("update", packed(NEW, status=1))
    assert refused.exit_code == 1
    assert f"doesn't run here ({NEW})" in refused.stderr
    assert device.served() == f"{OLD}\n"


def test_deploy_repairs_what_update_can_not(device: Device, packed: Packed) -> None:
    first = deployed(device, "deploy", packed(OLD))
    tokenizer = device.root / "current/bundle/tokenizer.json"
    tokenizer.write_text("damaged on the disk")
    refused = device.run("update", packed(NEW))
    assert "bundle/tokenizer.json isn't what the package says" in refused.stderr
    assert device.served() == f"{OLD}\n"
    again = deployed(device, "deploy", packed(OLD))
    assert again["current"] == first["current"]
    open_bundle(device.root / "current/bundle")
    assert not (device.root / "previous").is_symlink(), "a damaged version to go back to"
    deployed(device, "update", packed(NEW))


def test_a_damaged_version_is_not_gone_back_to(device: Device, packed: Packed) -> None:
    deployed(device, "deploy", packed(OLD))
    deployed(device, "update", packed(NEW))
    (device.root / "previous/bin/llm-run").write_text("x")
    refused = device.run("rollback")
    assert "bin/llm-run isn't what the package says" in refused.stderr
    assert device.served() == f"{NEW}\n"


def test_refusals(
    device: Device, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packed(NEW)
    assert "Nothing is installed" in device.run("update", package).stderr
    assert "There is nothing in" in device.run("status").stderr
    assert "There is no previous version" in device.run("rollback").stderr
    other = device.run("deploy", packed("3.0", "--arch", "arm64"))
    assert "is for arm64, and device is x86_64" in other.stderr
    assert "is no package" in device.run("deploy", tmp_path / "none.tar").stderr
    (tmp_path / "text.tar").write_text("text")
    assert "is no package" in device.run("deploy", tmp_path / "text.tar").stderr
    assert "can't be reached" in device.run("deploy", package, host="cut-0").stderr

    monkeypatch.setattr("scripts.edge.delivery.MARGIN", 1 << 60)
    assert "make room there" in device.run("deploy", package).stderr
    assert not list((device.root / "incoming").iterdir())
    assert not (device.root / "current").exists()


def test_names_that_leave_the_folder_are_refused(packed: Packed, tmp_path: Path) -> None:
    package = tmp_path / "package.tar"
    shutil.copyfile(packed(NEW), package)
    with tarfile.open(package, "a") as archive:
        member = tarfile.TarInfo("../outside")
        archive.addfile(member)
    with pytest.raises(UserError, match="outside' is no file that belongs there"):
        Package(package)


def test_a_second_deployment_at_a_time_is_refused(device: Device, packed: Packed) -> None:
    deployed(device, "deploy", packed(OLD))
    holder = subprocess.Popen(
        ["flock", device.root / "lock", "sh", "-c", "echo held; read -r line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert "is under way" in device.run("update", packed(NEW)).stderr
    assert os.readlink(device.root / "current").startswith(f"versions/{OLD}-")
