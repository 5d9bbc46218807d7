"""What machine this is, for the head of the page."""

import importlib
import importlib.metadata
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from serving.commands.doctor import Check, examine

_DRIVER = Path("/proc/driver/nvidia/version")
_MODULES = ("torch", "transformers", "onnx", "onnxruntime", "tensorrt_rtx")


def why_no_gpu() -> str | None:
    """Say in a clause why no GPU can be used here, or None where one can."""
    gpu = _gpu()
    return None if gpu.works else gpu.detail


def describe_machine() -> dict[str, str]:
    """Date, chip, driver, commit and versions, by name."""
    versions = ", ".join(f"{module} {version_of(module)}" for module in _MODULES)
    driver = driver_version(_DRIVER.read_text()) if _DRIVER.exists() else "unknown"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "GPU": f"{_gpu().detail}, compute capability {_compute_capability()}",
        "driver": driver,
        "commit": _commit(),
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def driver_version(text: str) -> str:
    """The version in /proc/driver/nvidia/version, whose first line names it before the date."""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found[0] if found else "unknown"


def version_of(module: str) -> str:
    """The version of an importable module, or what is the matter with it."""
    try:
        return str(importlib.import_module(module).__version__)
    except Exception as error:  # what a broken wheel raises at import isn't known
        return f"can't be imported ({error})"


def _gpu() -> Check:
    return next(examine())


def _compute_capability() -> str:
    try:
        torch = importlib.import_module("torch")
        major, minor = torch.cuda.get_device_capability()
    except Exception as error:  # as above
        return f"unknown ({error})"
    return f"{major}.{minor}"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
