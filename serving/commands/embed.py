"""``serve-llm embed``: a vector for each text."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click

from serving.commands.options import (
    OpenOptions,
    bundle_argument,
    json_option,
    key_file_option,
    load_options,
    verify_option,
)

if TYPE_CHECKING:
    from serving.embedding import Pooling


@click.command()
@bundle_argument
@click.argument("texts", nargs=-1)
@click.option(
    "--pooling",
    type=click.Choice(["last", "mean"]),
    default="last",
    help="Whose hidden states: the last token's, or the mean of all (default: last).",
)
@click.option(
    "--normalize/--no-normalize", default=True, help="Vectors of length 1 (default: yes)."
)
@click.option(
    "--context-overflow",
    type=click.Choice(["refuse", "truncate"]),
    default="refuse",
    help="What to do with a text longer than the capacity (default: refuse).",
)
@load_options
@verify_option
@key_file_option
@json_option
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    pooling: "Pooling",
    normalize: bool,
    context_overflow: Literal["refuse", "truncate"],
    as_json: bool,
    **opening: Unpack[OpenOptions],
) -> None:
    """Embed TEXTS (default: the lines of standard input) with the model in BUNDLE.

    Prints a line of numbers for each text.
    """
    from serving.loading import load

    lines = texts or tuple(sys.stdin.read().splitlines())
    with load(bundle, slots=1, **opening) as model:
        result = model.embed(
            lines, pooling=pooling, normalize=normalize, context_overflow=context_overflow
        )
    vectors = result.vectors.tolist()
    if as_json:
        figures = zip(vectors, result.prompt_tokens, result.truncated, strict=True)
        documents = [
            {"embedding": vector, "prompt_tokens": tokens, "truncated": truncated}
            for vector, tokens, truncated in figures
        ]
        click.echo(json.dumps(documents))
        return
    for number, (vector, truncated) in enumerate(zip(vectors, result.truncated, strict=True), 1):
        click.echo(" ".join(f"{value:.6g}" for value in vector))
        if truncated:
            click.echo(f"Text {number} was too long: its beginning was embedded.", err=True)
