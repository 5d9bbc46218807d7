"""Writing a model repository: a directory for each model, a numbered one for each version."""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.bundle import Bundle, open_bundle
from serving.errors import UserError
from serving.loading import choose_engine
from serving.triton.config import ModelConfig
from serving.triton.settings import Settings
from serving.triton.tensors import INPUTS, OUTPUTS

PACKAGE = Path(__file__).parents[1]
CONFIG = "config.pbtxt"

# Of our package a version doesn't need what serves in other ways.
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "http", "commands", "cli.py")

MODEL_PY = '''\
"""Written by serve-llm triton: runs the bundle beside it with the runtime beside it."""

import sys
from pathlib import Path

# Before the others: this version's own runtime, whatever else is installed.
sys.path.insert(0, str(Path(__file__).parent))

from serving.triton.model import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True, slots=True)
class Deployment:
    """A bundle under the ``name`` that requests choose it by.

    It is linked, or ``copies`` says that it is copied. ``adapters`` are directories of LoRA
    adapters by name; they are copied. ``versions`` is how many of the newest Triton serves.
    """

    bundle: Path
    name: str
    settings: Settings = field(default_factory=Settings)
    instances: int = 1
    versions: int = 1
    adapters: Mapping[str, Path] = field(default_factory=dict)
    copies: bool = False


def write_version(deployment: Deployment, repository: Path) -> Path:
    """Add a model to a repository, or a version to a model; returns the version's directory.

    A server that polls the repository sees it complete or not at all. Raises UserError for a bundle
    that can't be served, and where the repository can't be written.
    """
    _check_name(deployment.name)
    settings = deployment.settings
    bundle = open_bundle(deployment.bundle, settings.verify, settings.key_file)
    config = _config(deployment, bundle)
    try:
        return _write(deployment, repository, config.render())
    except OSError as error:
        raise UserError(
            f"The repository {str(repository)!r} can't be written ({error}): check its permissions "
            "and its disk."
        ) from error


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"The model can't be named {name!r}: give --name letters, digits, '.', '_' and '-'."
        )


def _config(deployment: Deployment, bundle: Bundle) -> ModelConfig:
    settings = deployment.settings
    engine = choose_engine(bundle, settings.target)
    on_gpu = settings.provider == "cuda" or engine.target != "onnxruntime"
    return ModelConfig(
        deployment.name,
        INPUTS,
        OUTPUTS,
        deployment.instances,
        "KIND_MODEL" if on_gpu else "KIND_CPU",
        deployment.versions,
        settings.parameters,
    )


def _write(deployment: Deployment, repository: Path, config: str) -> Path:
    model = repository / deployment.name
    number = max(version_numbers(model), default=0) + 1
    repository.mkdir(parents=True, exist_ok=True)
    # Beside the repository, where no server looks; a rename within a file system is atomic.
    partial = repository.parent / f".{repository.name}.{secrets.token_hex(4)}.partial"
    try:
        _write_files(deployment, partial / str(number))
        (partial / CONFIG).write_text(config, "utf-8")
        if not model.exists():
            partial.rename(model)
        else:
            (partial / str(number)).rename(model / str(number))
            (partial / CONFIG).rename(model / CONFIG)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model / str(number)


def version_numbers(model: Path) -> list[int]:
    """Numbers of a model's versions."""
    names = [path.name for path in model.iterdir()] if model.is_dir() else []
    return [int(name) for name in names if name.isdecimal()]


def _write_files(deployment: Deployment, version: Path) -> None:
    version.mkdir(parents=True)
    shutil.copytree(PACKAGE, version / "serving", ignore=_LEFT_OUT)
    bundle = deployment.bundle.resolve()
    if deployment.copies:
        shutil.copytree(bundle, version / "bundle")
    else:
        os.symlink(bundle, version / "bundle")
    for name, adapter in deployment.adapters.items():
        shutil.copytree(adapter, version / "adapters" / name)
    (version / "model.py").write_text(MODEL_PY, "utf-8")
