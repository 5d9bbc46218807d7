"""Writing a model repository: a directory for each model, a numbered one for each version."""

import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from serving.bundle import Bundle, open_bundle
from serving.errors import UserError
from serving.loading import choose_engine
from serving.triton.config import DynamicBatching, ModelConfig
from serving.triton.encoders.configuration import encoder_model
from serving.triton.roles import ENGINE, SINGLE, STEPS, Role, ensemble_steps
from serving.triton.settings import EncoderSettings, Settings
from serving.triton.tensors import INPUTS, OUTPUTS

PACKAGE = Path(__file__).parents[1]
CONFIG = "config.pbtxt"

_ENSEMBLE, _SINGLE = "an ensemble", "a single model that generates text"
_REMEDIES = {
    (_ENSEMBLE, _SINGLE): ", or add --ensemble",
    (_SINGLE, _ENSEMBLE): ", or leave out --ensemble",
}

# Of our package a version doesn't need what serves in other ways.
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "http", "commands", "cli.py")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A bundle under the ``name`` that requests choose it by.

    It is linked, or ``copies`` says that it is copied. ``adapters`` are directories of LoRA
    adapters by name; they are copied. ``versions`` is how many of the newest Triton serves. An
    ensemble is four models, of which requests choose the one without a suffix. ``settings`` are of
    the bundle's kind. An encoder has ``batching``, but no adapters and no ensemble.
    """

    bundle: Path
    name: str
    settings: Settings | EncoderSettings = field(default_factory=Settings)
    instances: int = 1
    versions: int = 1
    adapters: Mapping[str, Path] = field(default_factory=dict)
    copies: bool = False
    is_ensemble: bool = False
    batching: DynamicBatching = field(default_factory=DynamicBatching)


def write_version(deployment: Deployment, repository: Path) -> Path:
    """Add a model to a repository, or a version to a model; returns the version's directory.

    A server that polls the repository sees it complete or not at all. Raises UserError for a bundle
    that can't be served, and where the repository can't be written.
    """
    _check_name(deployment.name)
    settings = deployment.settings
    bundle = open_bundle(deployment.bundle, settings.verify, settings.key_file)
    models = _models(deployment, bundle)
    _check_form(models[-1][0], repository)
    try:
        return _write(deployment, repository, models)
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


def _check_ensemble(deployment: Deployment, bundle: Bundle) -> None:
    if bundle.manifest.graph.source is not None:
        raise UserError(
            "An encoder-decoder's engine needs the tokenizer itself, for the languages that its "
            "outputs begin with: leave --ensemble out."
        )
    if bundle.file("tokenizer.json") is None:
        raise UserError(
            "This bundle has no tokenizer.json, so there is nothing to do before and after its "
            "engine: leave --ensemble out."
        )
    if deployment.versions > 1:
        raise UserError(
            "--ensemble and --versions exclude each other, as every version of an ensemble runs "
            "its steps' newest one: leave one of them out."
        )


def _check_form(config: ModelConfig, repository: Path) -> None:
    """Raise UserError if the name is that of a model of another form."""
    path = repository / config.name / CONFIG
    if not path.is_file():
        return
    old, new = _form(path.read_text("utf-8")), _form(config.render())
    if old != new:
        raise UserError(
            f"{config.name!r} in {str(repository)!r} is {old}, and this would be {new}: choose "
            f"another --name{_REMEDIES.get((old, new), '')}."
        )


def _form(config: str) -> str:
    if 'platform: "ensemble"' in config:
        return _ENSEMBLE
    return _SINGLE if "decoupled: true" in config else "an encoder"


def _models(deployment: Deployment, bundle: Bundle) -> list[tuple[ModelConfig, Role | None]]:
    """The models to write: an ensemble, which has no role, is the last of them.

    Raises UserError for a bundle that can't be served, or not so.
    """
    settings = deployment.settings
    if isinstance(settings, EncoderSettings):
        sizes = deployment.instances, deployment.versions
        return [encoder_model(deployment.name, bundle, settings, deployment.batching, *sizes)]
    if deployment.is_ensemble:
        _check_ensemble(deployment, bundle)
    settings = settings.for_bundle(bundle)
    engine = choose_engine(bundle, settings.target)
    on_gpu = settings.provider == "cuda" or engine.target != "onnxruntime"
    single = ModelConfig(
        deployment.name,
        INPUTS,
        OUTPUTS,
        instances=deployment.instances,
        instances_remark=SINGLE.instances,
        kind="KIND_MODEL" if on_gpu else "KIND_CPU",
        versions=deployment.versions,
        parameters=settings.parameters,
    )
    if not deployment.is_ensemble:
        return [(single, SINGLE)]
    ensemble = replace(single, parameters={}, steps=ensemble_steps(single.name))
    return [*((_step(single, role), role) for role in STEPS), (ensemble, None)]


def _step(single: ModelConfig, role: Role) -> ModelConfig:
    config = replace(
        single,
        name=single.name + role.suffix,
        inputs=role.inputs,
        outputs=role.outputs,
        instances_remark=role.instances,
        decoupled=role.decoupled,
    )
    if role.has_engine:
        return config
    key_file = {name: value for name, value in single.parameters.items() if name == "key_file"}
    return replace(config, instances=1, kind="KIND_CPU", parameters=key_file)


def _write(
    deployment: Deployment, repository: Path, models: Sequence[tuple[ModelConfig, Role | None]]
) -> Path:
    names = [config.name for config, _ in models]
    numbers = [number for name in names for number in version_numbers(repository / name)]
    version = str(max(numbers, default=0) + 1)
    repository.mkdir(parents=True, exist_ok=True)
    # Beside the repository, where no server looks; a rename within a file system is atomic.
    partial = repository.parent / f".{repository.name}.{secrets.token_hex(4)}.partial"
    try:
        for config, role in models:
            _write_model(deployment, config, role, partial / config.name / version)
        for name in names:
            _publish(partial / name, repository / name, version)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return repository / deployment.name / version


def _publish(partial: Path, model: Path, version: str) -> None:
    """Make a version visible to servers."""
    if not model.exists():
        partial.rename(model)
    else:
        (partial / version).rename(model / version)
        (partial / CONFIG).rename(model / CONFIG)


def version_numbers(model: Path) -> list[int]:
    """Numbers of a model's versions."""
    names = [path.name for path in model.iterdir()] if model.is_dir() else []
    return [int(name) for name in names if name.isdecimal()]


def _write_model(
    deployment: Deployment, config: ModelConfig, role: Role | None, version: Path
) -> None:
    version.mkdir(parents=True)
    (version.parent / CONFIG).write_text(config.render(), "utf-8")
    if role is None:  # Triton wants the directory nevertheless
        return
    shutil.copytree(PACKAGE, version / "serving", ignore=_LEFT_OUT)
    (version / "model.py").write_text(role.model_py, "utf-8")
    bundle = deployment.bundle.resolve()
    if not deployment.copies:
        os.symlink(bundle, version / "bundle")
    elif role.has_engine:
        shutil.copytree(bundle, version / "bundle")
    else:
        engine = Path("..", "..", deployment.name + ENGINE.suffix, version.name)
        os.symlink(engine / "bundle", version / "bundle")
    for name, adapter in deployment.adapters.items() if role.has_engine else ():
        shutil.copytree(adapter, version / "adapters" / name)
