"""The environment of the wheel's server and of its models: .venv-triton, made at first use."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-triton"
CONSTRAINTS = ROOT / "constraints-triton.txt"

# The server, without what its package needs to start it from Python.
SERVER = "nvidia-pytriton"

# Those that numpy 1.26, the last one before 2, has wheels for, newest first.
PYTHONS = ("3.12", "3.11")

_STUB = "triton_python_backend_stub"

# Of pip's output when it fails.
_REASON_LINES = 5


def requirements() -> list[str]:
    """What is installed, each with its version: ``name==version``."""
    lines = CONSTRAINTS.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def make_environment() -> Path:
    """The environment's interpreter; the environment is made if it isn't there or isn't complete.

    Raises UserError where there is no fitting Python, or if pip fails.
    """
    ENVIRONMENT.mkdir(exist_ok=True)
    python = ENVIRONMENT / "bin" / "python3"
    complete = ENVIRONMENT / "complete"  # written last
    state = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()
    with _locked(ENVIRONMENT):
        if not complete.is_file() or complete.read_text() != state or not python.exists():
            complete.unlink(missing_ok=True)
            _install(python)
            complete.write_text(state)
    return python


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others that would make the same directory waiting."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _install(python: Path) -> None:
    base = find_base_python()
    if base is None:
        raise UserError(
            f"Triton's server from PyPI runs models with Python {' or '.join(PYTHONS)}, and none "
            "of them is on the PATH: install one, or use a container."
        )
    server = [line for line in requirements() if line.startswith(SERVER)]
    models = [line for line in requirements() if line not in server]
    _run([base, "-m", "venv", "--clear", str(ENVIRONMENT)])
    _run([str(python), "-m", "pip", "install", "--quiet", *models])
    _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *server])
    (packages,) = (ENVIRONMENT / "lib").glob("python3.*")
    triton = packages / "site-packages" / "pytriton" / "tritonserver"
    # The server looks for the stub beside the backend; the wheel has one for each Python elsewhere.
    stub = Path("python_backend_stubs", packages.name.removeprefix("python"), _STUB)
    (triton / "backends" / "python" / _STUB).symlink_to(Path("..", "..", stub))


def find_base_python() -> str | None:
    """This Python if it fits, or else another one on the PATH, or None."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS:
        return sys.executable
    return next(filter(None, (shutil.which(f"python{version}") for version in PYTHONS)), None)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(done.stdout.splitlines()[-_REASON_LINES:])
        raise UserError(f"{ENVIRONMENT.name} can't be made ({reason.strip()}): start again.")
