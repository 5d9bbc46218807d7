"""Checking a model repository without a server: what would keep Triton from loading its models."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.bundle import open_bundle
from serving.encoders.opening import choose_encoder_engine
from serving.errors import UserError
from serving.loading import DEFAULT_CAPACITY, choose_engine
from serving.source_limits import choose_source_capacity, refuse_for_sources
from serving.triton.encoders.tensors import MODULE as ENCODERS
from serving.triton.encoders.tensors import encoder_role
from serving.triton.repository import CONFIG, version_numbers
from serving.triton.roles import ROLES, Role, model_py
from serving.triton.settings import EncoderSettings, Settings
from serving.triton.tensors import TensorSpec


def check_repository(repository: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each model's name, and what is wrong with it in a sentence each.

    Raises UserError if there is no repository, or the package that reads config.pbtxt is missing.
    """
    if find_spec("tritonclient") is None:
        raise UserError("Checking a repository needs tritonclient: install export-llm[triton].")
    try:
        models = sorted(path for path in repository.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(
            f"The repository {str(repository)!r} can't be read ({error.strerror}): give another."
        ) from error
    if not models:
        raise UserError(
            f"{str(repository)!r} holds no model: give the directory above the models, or write "
            "one with serve-llm triton BUNDLE REPOSITORY."
        )
    for model in models:
        yield model.name, list(_problems(model))


def _problems(model: Path) -> Iterator[str]:
    try:
        config = _read_config(model / CONFIG)
    except UserError as error:
        yield str(error)
        return
    if config.name not in ("", model.name):
        yield f"{CONFIG} names the model {config.name!r}: Triton wants its directory's name."
    versions = _served_versions(model, config)
    if not versions:
        yield "It has no version to serve: a directory 1, 2 ... that version_policy lets through."
    if config.platform == "ensemble":
        yield from _ensemble_problems(model, config)
    elif config.backend == "python":
        for version in versions:
            yield from _version_problems(version, config)


def _read_config(path: Path) -> Any:
    """Read a config.pbtxt as Triton's own message."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{CONFIG} can't be read ({reason}).") from error
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{CONFIG} can't be read: {error}.") from error


def _served_versions(model: Path, config: Any) -> list[Path]:
    """Directories of the versions that Triton would load."""
    policy, numbers = config.version_policy, sorted(version_numbers(model))
    match policy.WhichOneof("policy_choice"):
        case "specific":
            numbers = [number for number in numbers if number in policy.specific.versions]
        case "latest":
            numbers = numbers[-max(1, policy.latest.num_versions) :]
        case None:
            numbers = numbers[-1:]
    return [model / str(number) for number in numbers]


def _ensemble_problems(model: Path, config: Any) -> Iterator[str]:
    for step in config.ensemble_scheduling.step:
        if not (model.parent / step.model_name).is_dir():
            yield f"The repository lacks {step.model_name!r}, a step of this ensemble."


def _version_problems(version: Path, config: Any) -> Iterator[str]:
    source = version / "model.py"
    if not source.is_file():
        yield f"Version {version.name} has no model.py."
        return
    text = source.read_text("utf-8")
    try:
        if text == model_py(ENCODERS):
            yield from _tensor_problems(config, _check_encoder(version, config))
        for role in ROLES:  # others' models are their own affair
            if text == role.model_py:
                yield from _tensor_problems(config, role)
                _check_bundle(version, config, role)
    except UserError as error:
        yield f"Version {version.name}: {error}"


def _tensor_problems(config: Any, role: Role) -> Iterator[str]:
    """What our model wants of the configuration and doesn't find."""
    decoupled, size = config.model_transaction_policy.decoupled, config.max_batch_size
    if decoupled != role.decoupled or size < 1 or (size > 1 and not role.batches):
        wanted = str(role.decoupled).lower()
        yield (
            f"{CONFIG} must have max_batch_size: 1{' or more' if role.batches else ''} and "
            f"model_transaction_policy {{ decoupled: {wanted} }}."
        )
    for kind, specs, given in (
        ("input", role.inputs, config.input),
        ("output", role.outputs, config.output),
    ):
        declared = {tensor.name: tensor for tensor in given}
        for spec in specs:
            if not _agrees(spec, declared.get(spec.name)):
                yield (
                    f"{CONFIG} doesn't declare the {kind} {spec.name!r} as {spec.data_type} "
                    f"{list(spec.dims)}: write the repository again."
                )


def _agrees(spec: TensorSpec, declared: Any) -> bool:
    if declared is None:
        return False
    types = declared.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return (types[declared.data_type].name, tuple(declared.dims)) == (spec.data_type, spec.dims)


def _check_encoder(version: Path, config: Any) -> Role:
    """What a version's bundle makes of our model; raises UserError if it couldn't be opened."""
    settings = EncoderSettings.from_parameters(_parameters(config))
    bundle = open_bundle(version / "bundle", settings.verify, settings.key_file)
    choose_encoder_engine(bundle, settings.target)
    return encoder_role(bundle.manifest.require_encoder())


def _parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def _check_bundle(version: Path, config: Any, role: Role) -> None:
    """Raise UserError if our model couldn't open a version's bundle or adapters."""
    from serving.peft_adapter import read_adapter

    settings = Settings.from_parameters(_parameters(config))
    verify = settings.verify and role.has_engine  # the bundle is the same for all of an ensemble
    bundle = open_bundle(version / "bundle", verify, settings.key_file)
    choose_engine(bundle, settings.target)
    source = bundle.manifest.graph.source
    if choose_source_capacity(source, settings.source_capacity, DEFAULT_CAPACITY) is not None:
        refuse_for_sources(
            in_python=settings.runtime == "python" and settings.provider != "cuda",
            has_draft=False,
            keeps_prefixes=settings.prefix_rows > 0,
        )
    adapters = version / "adapters"
    for adapter in adapters.iterdir() if adapters.is_dir() else ():
        read_adapter(adapter, bundle.manifest.graph.lora)
