"""A device to deploy to: sshd on loopback, with keys and a configuration of its own."""

import functools
import getpass
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from scripts.edge.host_commands import deploy, rollback, status, update
from scripts.edge.libraries import BUILD, LIBRARY
from scripts.edge.pack_command import pack
from tests.edge.relay import CUT
from tests.exporter.commands import run
from tests.exports import once
from tests.serving.tiny_bundle import make_bundle

Packed = Callable[..., Path]

COMMANDS = {"deploy": deploy, "rollback": rollback, "status": status, "update": update}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "edge/tiny", make_bundle)


def run_pack(*arguments: object) -> Result:
    options = () if "--arch" in arguments else ("--arch", "x86-64")
    return CliRunner().invoke(pack, list(map(str, [*arguments, *options])))


def unpacked_package(bundle: Path, folder: Path, architecture: str, *options: object) -> Path:
    """What is in the package of a bundle, with the real programs, which are built once."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    package = folder / f"{architecture}.tar"
    with FileLock(BUILD.with_suffix(".lock")):
        done = run_pack(bundle, package, "--arch", architecture, *options)
    if "Downloading ONNX Runtime" in done.output:
        pytest.skip(done.output.strip())
    assert done.exit_code == 0, done.output
    with tarfile.open(package) as archive:
        archive.extractall(folder / architecture, filter="data")
    return folder / architecture


@pytest.fixture(scope="session")
def trained_bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        result = run(trained_checkpoint, path)
        assert result.exit_code == 0, result.output

    return once(tmp_path_factory, "trained/float32", make)


class Device(NamedTuple):
    """``root`` is where packages are; ``config`` is for ssh, where it is called "device"."""

    root: Path
    config: Path

    def run(self, command: str, *arguments: object, host: str = "device") -> Result:
        options = ["--ssh-config", self.config, "--root", self.root]
        return CliRunner().invoke(COMMANDS[command], list(map(str, [host, *arguments, *options])))

    def served(self) -> str:
        """What the version that is served says of itself."""
        done = subprocess.run(
            [self.root / "current/bin/llm", "--version"], capture_output=True, text=True, check=True
        )
        return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
# bash reads no file of the user's then.
SetEnv SHLVL=1
"""
SSH = """\
Host device without-rsync cut-*
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking accept-new
    LogLevel ERROR
# The connection ends once so many bytes were sent.
Host cut-*
    ProxyCommand {python} {relay} {port} %n
"""


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server, by the configuration that a client needs."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no sshd (Debian: openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    make_key(folder / "host")
    make_key(folder / "user")
    values = {
        "folder": folder,
        "port": _free_port(),
        "user": getpass.getuser(),
        "python": sys.executable,
        "relay": CUT,
    }
    (folder / "sshd_config").write_text(SSHD.format(**values))
    (folder / "ssh_config").write_text(SSH.format(**values))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where its unprivileged part is
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        while "listening" not in (folder / "log").read_text():
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        yield folder / "ssh_config"
        server.terminate()
        server.wait()


@pytest.fixture
def device(sshd: Path, tmp_path: Path) -> Device:
    return Device(tmp_path / "device", sshd)


def make_runtime(folder: Path, says: str, status: int = 0) -> Path:
    """Programs that only say which version they are; test_arm64.py runs the real ones."""
    for name in ("bin/llm-run", "bin/llm-serve", "lib/libllm_runtime.so.1"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def packed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """A function from a version and options to a package, whose programs say the version."""
    folder = tmp_path_factory.mktemp("packages")
    # Smaller than ONNX Runtime's, and large enough to be cut off.
    libraries = {LIBRARY: random.Random(0).randbytes(4_000_000)}

    @functools.cache
    def make(version: str, *options: object, status: int = 0) -> Path:
        runtime = make_runtime(folder / f"runtime-{version}-{status}", version, status)
        package = folder / f"{len(list(folder.iterdir()))}.tar"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scripts.edge.contents.onnxruntime_files", lambda _: libraries)
            done = run_pack(bundle, package, "--version", version, "--runtime", runtime, *options)
        assert done.exit_code == 0, done.output
        return package

    return make
