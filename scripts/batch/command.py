"""The command line of scripts/batch_generate."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from click.core import ParameterSource

from scripts.batch.encoder import EncoderOptions, EncoderRunner
from scripts.batch.encoder_lines import RESULTS
from scripts.batch.generator import Generator
from scripts.batch.lines import Key, Line
from scripts.batch.output import Output
from serving.bundle import open_bundle
from serving.commands.encoder_options import batch_option
from serving.commands.options import (
    LoadOptions,
    bundle_argument,
    constraint_options,
    json_option,
    model_options,
    refuse_given,
)
from serving.commands.source_options import source_options
from serving.errors import UserError

Runner = type[Generator] | type[EncoderRunner]

# The options that encoders have a use for.
_FOR_ENCODERS = frozenset(
    {
        "bundle",
        "inputs",
        "output",
        "local",
        "address",
        "concurrency",
        "batch_size",
        "batch_tokens",
        "overlap",
        "context_overflow",
        "target",
        "threads",
        "verify",
        "key_file",
        "as_json",
    }
)


@click.command()
@bundle_argument
@click.argument("inputs", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--local", is_flag=True, help="In this process, without Ray.")
@click.option("--address", help="A Ray cluster to join (default: RAY_ADDRESS, or this machine).")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes of Ray that open the bundle; they share the CPUs.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Lines that such a process takes, and writes, at a time.",
)
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="Of each (default: none).")
@click.option("--slots", type=click.IntRange(1), help="Lines of it at a time (default: 4).")
@batch_option
@click.option(
    "--overlap",
    type=click.IntRange(0),
    help="Of an encoder: split long texts into segments that share so many tokens.",
)
@model_options
@constraint_options
@source_options
@click.option("--num-beams", type=int, help="Beams of a search (1: no search).")
@click.option("--length-penalty", type=float, help="Above 0 favours longer sequences.")
@click.option("--no-repeat-ngram-size", type=int, help="So many tokens never come twice.")
@json_option
def main(
    bundle: Path,
    inputs: Path,
    output: Path,
    local: bool,
    address: str | None,
    concurrency: int,
    batch_size: int,
    gpus: float,
    slots: int | None,
    batch_tokens: int,
    overlap: int | None,
    source_capacity: int | None,
    opening: LoadOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate from every line of INPUT with the model in BUNDLE, and add the results to OUTPUT.

    A line is a JSON object with "prompt" (a text or token ids; an encoder-decoder's source) or
    "messages", perhaps an "id" and options of its own; its other fields are copied to its result.
    For an encoder it has a "text", or "question" and "context". Lines that OUTPUT has already
    aren't done again. The exit code is 1 if any line failed.
    """
    if local and (concurrency > 1 or address or gpus):
        raise click.UsageError("--local is without Ray: leave its options out.")
    begin = perf_counter()
    try:
        _require_ray(local)
        lines = _read(inputs)
        # Refused before anything runs.
        encoder = open_bundle(bundle, opening["verify"], opening["key_file"]).manifest.encoder
        if encoder is None:
            refuse_given({"batch_tokens", "overlap"}, "is for encoders: leave it out.")
            runner, field, tokens_of = Generator, "text", "new_tokens"
            limits = {"slots": slots, "source_capacity": source_capacity}
            setting = (bundle, {**opening, **limits}, _given(options))
        else:
            runner, field, tokens_of = EncoderRunner, RESULTS[encoder.task], "tokens"
            setting = (bundle, *_for_encoder(opening, options, batch_tokens, overlap))
        with Output(output, field) as results:
            pending = [line for line in lines if line.key not in results.done]
            if local:
                generated = _generate_here(runner, pending, *setting)
            else:
                generated = _generate_on_ray(
                    runner,
                    pending,
                    *setting,
                    address=address,
                    concurrency=concurrency,
                    batch_size=batch_size,
                    gpus=gpus,
                )
            with closing(generated):
                tokens = _write(generated, results, len(pending), tokens_of)
            failed = results.failed
    except UserError as error:
        raise click.ClickException(str(error)) from error
    seconds = perf_counter() - begin
    summary = {
        "lines": len(lines),
        "earlier": len(lines) - len(pending),
        "failed": failed,
        tokens_of: tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
    }
    click.echo(json.dumps(summary) if as_json else _sentence(summary))
    if failed:
        raise SystemExit(1)


def _for_encoder(
    opening: LoadOptions, options: dict[str, Any], batch_tokens: int, overlap: int | None
) -> tuple[dict[str, Any], EncoderOptions]:
    """How an encoder is opened, and its options; raises UserError for those of generation."""
    given = {str(parameter.name) for parameter in click.get_current_context().command.params}
    refuse_given(given - _FOR_ENCODERS, "is for models that generate text: leave it out.")
    overflow = options["context_overflow"]
    if overflow == "slide":
        raise UserError(
            "Encoders' texts don't grow: take --context-overflow truncate, or --overlap."
        )
    if overlap is not None:
        if overflow == "truncate":
            raise UserError("--overlap splits long texts: leave --context-overflow out.")
        overflow = "segments"
    loaded = {
        "target": opening["target"],
        "threads": opening["threads"],
        "batch_tokens": batch_tokens,
        "verify": opening["verify"],
        "key_file": opening["key_file"],
    }
    return loaded, EncoderOptions(context_overflow=overflow, overlap=overlap)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that the command line has: the others are the checkpoint's to choose."""
    source = click.get_current_context().get_parameter_source
    return {
        name: value
        for name, value in options.items()
        if source(name) is not ParameterSource.DEFAULT or name == "speculation"
    }


def _generate_here(runner: Runner, lines: list[Line], *setting: Any) -> Iterator[str]:
    if not lines:
        return
    with closing(runner(*setting)) as running:
        yield from running.run(lines)


def _generate_on_ray(
    runner: Runner, lines: list[Line], *setting: Any, **limits: Any
) -> Iterator[str]:
    if not lines:
        return
    from scripts.batch.on_ray import generate

    yield from generate(runner, lines, *setting, **limits)


def _write(generated: Iterable[str], results: Output, count: int, tokens_of: str) -> int:
    """Write results as they come; returns how many tokens they name."""
    tokens = 0
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(generated, length=count, file=sys.stderr, hidden=is_hidden) as bar:
        for line in bar:
            tokens += results.add(line).get(tokens_of, 0)
    return tokens


def _read(path: Path) -> list[Line]:
    """The lines of the input that aren't empty; raises UserError if two have the same id."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = [Line(number, text) for number, text in enumerate(file, 1) if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} can't be read ({error}): give another file.") from error
    numbers: dict[Key, int] = {}
    for line in lines:
        earlier = numbers.setdefault(line.key, line.number)
        if earlier != line.number:
            raise UserError(
                f"Lines {earlier} and {line.number} of {str(path)!r} have the same id: give each "
                "its own."
            )
    return lines


def _require_ray(local: bool) -> None:
    if not local and find_spec("ray") is None:
        raise UserError(
            "Several processes need the Python package ray: install export-llm[ray], or take "
            "--local."
        )


def _sentence(summary: dict[str, Any]) -> str:
    tokens = summary.get("new_tokens", summary.get("tokens"))
    return (
        f"{summary['lines']} lines, {summary['earlier']} of them done earlier, "
        f"{summary['failed']} failed; {tokens} tokens in {summary['seconds']:.1f} s "
        f"({summary['tokens_per_second']:.1f} tokens/s)"
    )
