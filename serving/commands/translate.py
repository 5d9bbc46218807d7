"""``serve-llm translate`` and ``summarize``: a text in, what an encoder-decoder makes of it out."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import (
    Command,
    add_options,
    bundle_argument,
    json_option,
    key_file_option,
    verify_option,
)
from serving.errors import UserError

if TYPE_CHECKING:
    from serving.context_overflow import ContextOverflow


def source_options(command: Command) -> Command:
    """Add what both commands share; what isn't given is as generation_config.json says."""
    options = (
        bundle_argument,
        click.argument("text", required=False),
        click.option("--prefix", default="", help="Put before the text, as T5 wants it."),
        click.option("--num-beams", type=int, help="Beams of a search (1: no search)."),
        click.option("--length-penalty", type=float, help="Above 0 favours longer sequences."),
        click.option("--max-new-tokens", type=int, help="Most tokens of the output."),
        click.option("--min-new-tokens", type=int, help="Fewest tokens of the output."),
        click.option("--no-repeat-ngram-size", type=int, help="So many tokens never come twice."),
        click.option("--truncate", is_flag=True, help="Read the beginning of a text that is long."),
        click.option("--source-capacity", type=int, help="Most tokens of a text."),
        click.option("--threads", type=int, help="Threads (default: the physical cores)."),
        verify_option,
        key_file_option,
        json_option,
    )
    return add_options(command, options)


@click.command()
@source_options
@click.option("--source-language", help="The text's language, as the tokenizer calls it.")
@click.option("--target-language", help="The language to translate to.")
def translate(**options: Any) -> None:
    """Translate TEXT (default: standard input) with the encoder-decoder in BUNDLE."""
    _run(**options)


@click.command()
@source_options
def summarize(**options: Any) -> None:
    """Summarize TEXT (default: standard input) with the encoder-decoder in BUNDLE."""
    _run(**options)


def _run(
    *,
    bundle: Path,
    text: str | None,
    prefix: str,
    truncate: bool,
    source_capacity: int | None,
    threads: int | None,
    verify: bool,
    key_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    from serving.bundle import open_bundle
    from serving.generation_config import generation_defaults
    from serving.loading import load

    if text is None:
        text = sys.stdin.read().removesuffix("\n")
    opened = open_bundle(bundle, verify, key_file)
    if opened.manifest.graph.source is None:
        raise UserError(
            f"The bundle {str(bundle)!r} has no encoder: use serve-llm generate, or chat."
        )
    given = {name: value for name, value in options.items() if value is not None}
    beams = (generation_defaults(opened) | given).get("num_beams", 1)
    with load(
        bundle,
        slots=max(1, beams),
        source_capacity=source_capacity,
        threads=threads,
        verify=False,
        key_file=key_file,
    ) as model:
        overflow: ContextOverflow = "truncate" if truncate else "refuse"
        chosen = model.completed({**given, "context_overflow": overflow}, stream=False)
        result = model.generate(prefix + text, **chosen)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    else:
        click.echo(result.text)
