"""An arm64 root of Debian trixie with what the runtime needs, and running programs on it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from scripts.edge.libraries import LIBRARY
from tests.conftest import ROOT

SYSROOT = ROOT / "build" / "edge" / "trixie-arm64"
PACKAGES = ("libc6", "libgcc-s1", "libstdc++6")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCE = f"deb [arch=arm64 signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n"

# ONNX Runtime reads which processor it has here. A Cortex-A72, as in a Raspberry Pi 4.
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


def arm64_root() -> Path:
    """The root, downloaded once; skips the test where that isn't possible."""
    for program, package in (
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("qemu-aarch64-static", "qemu-user-static"),
        ("apt-get", "apt"),
        ("cmake", "cmake"),
    ):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (Debian: {package})")
    SYSROOT.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(SYSROOT.with_suffix(".lock")):
        if not (SYSROOT / "proc/cpuinfo").is_file():  # written last
            try:
                _make()
            except subprocess.CalledProcessError as error:
                reason = error.stderr.strip().splitlines()[-1:]
                pytest.skip(f"no packages of trixie for arm64 ({' '.join(reason)})")
    return SYSROOT


def _make() -> None:
    scratch = SYSROOT.with_suffix(".apt")
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "sources.list").write_text(SOURCE)
    (scratch / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
    for command in ([*apt, "update"], [*apt, "download", *PACKAGES]):
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True)
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, SYSROOT], check=True, capture_output=True)
    (SYSROOT / "lib").symlink_to("usr/lib")
    shutil.rmtree(scratch)
    (SYSROOT / "proc").mkdir()
    (SYSROOT / "proc/cpuinfo").write_text(CPUINFO)


def emulated(root: Path, package: Path, program: str, *arguments: object) -> list[str]:
    """The command line that runs a package's arm64 program, as its ``bin/llm`` does."""
    library = f"LLM_ONNXRUNTIME_LIBRARY={package / LIBRARY}"
    emulator = ["qemu-aarch64-static", "-cpu", "cortex-a72", "-L", root, "-E", library]
    return list(map(str, [*emulator, package / "bin" / program, *arguments]))
