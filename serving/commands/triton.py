"""``serve-llm triton``: a model repository for Triton Inference Server."""

from pathlib import Path
from typing import Any

import click

from serving.commands.encoder_options import batch_option
from serving.commands.options import (
    Command,
    add_options,
    given_options,
    key_file_option,
    load_options,
    named_directories,
    refuse_given,
    verify_option,
)
from serving.commands.server_options import scheduling_options
from serving.errors import UserError

# Options of models that generate text alone.
_GENERATING = {
    "is_ensemble",
    "adapters",
    "slots",
    "prefix_rows",
    "target_latency",
    "capacity",
    "provider",
    "runtime",
    "prefill_chunk",
    "prepack",
}
_BATCHING = {"most_texts", "delay", "queue_limit", "timeout"}
_ENCODING = (_BATCHING | {"batch_tokens"}) - {"queue_limit"}


def _batching_options(command: Command) -> Command:
    """Add those by which Triton gathers texts for an encoder."""
    options = (
        click.option(
            "--max-batch-size",
            "most_texts",
            type=click.IntRange(1),
            help="Encoders: most texts that Triton gathers (default: 64).",
        ),
        click.option(
            "--queue-delay",
            "delay",
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="Encoders: wait for more texts, even if the engine is idle (default: 0).",
        ),
        click.option(
            "--queue-timeout",
            "timeout",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="Encoders: give up requests that wait for longer (default: never).",
        ),
    )
    return add_options(command, (*options, batch_option))


def _check(context: click.Context, _: click.Parameter, repository: Path | None) -> None:
    """Print what is wrong with each model; raises UserError if anything is."""
    if repository is None:
        return
    from serving.triton.check import check_repository

    count = 0
    for model, problems in check_repository(repository):
        count += len(problems)
        for problem in problems or ("nothing wrong",):
            click.echo(f"{model}: {problem}")
    if count:
        raise UserError(f"{str(repository)!r} has {count} problems: mend what is listed above.")
    context.exit()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", type=click.Path(path_type=Path))
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="REPOSITORY",
    is_eager=True,
    expose_value=False,
    callback=_check,
    help="Say what is wrong with a repository, without a server, and exit.",
)
@click.option("--name", help="The model's name (default: the bundle's directory's).")
@click.option("--copy", "copies", is_flag=True, help="Copy the bundle instead of linking it.")
@click.option(
    "--ensemble",
    "is_ensemble",
    is_flag=True,
    help="Write an ensemble: the model in three, which tokenize, generate, and make texts.",
)
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    help="Processes with an engine of their own (default: 1).",
)
@click.option(
    "--versions",
    type=click.IntRange(1),
    default=1,
    help="How many of the newest versions are served (default: 1).",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    callback=named_directories,
    metavar="NAME=DIRECTORY",
    help="A LoRA adapter that requests may choose; may be repeated.",
)
@scheduling_options
@_batching_options
@load_options
@verify_option
@key_file_option
def triton(
    bundle: Path,
    repository: Path,
    name: str | None,
    copies: bool,
    is_ensemble: bool,
    instances: int,
    versions: int,
    adapters: dict[str, Path],
    **settings: Any,
) -> None:
    """Add BUNDLE to a model repository, as a model or as a model's next version."""
    from serving.bundle import open_bundle
    from serving.triton.config import DynamicBatching
    from serving.triton.repository import Deployment, write_version
    from serving.triton.settings import EncoderSettings, Settings

    shared: dict[str, Any] = {"instances": instances, "versions": versions, "copies": copies}
    name = name or bundle.resolve().name
    opened = open_bundle(bundle, verify=False, key_file=settings["key_file"])
    if opened.manifest.encoder is not None:
        refuse_given(_GENERATING, "is for models that generate text: leave it out for an encoder.")
        given = given_options(settings)
        batching = DynamicBatching(**{key: given.pop(key) for key in _BATCHING & given.keys()})
        encoding = EncoderSettings.from_options(given)
        deployment = Deployment(bundle, name, encoding, batching=batching, **shared)
    else:
        refuse_given(_ENCODING, "is for encoders: leave it out for a model that generates text.")
        values = {key: settings[key] for key in settings.keys() - _ENCODING}
        generating = Settings.from_options(values)
        deployment = Deployment(
            bundle, name, generating, adapters=adapters, is_ensemble=is_ensemble, **shared
        )
    written = write_version(deployment, repository)
    click.echo(f"{deployment.name}: version {written.name} in {repository}")
