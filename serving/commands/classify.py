"""``serve-llm classify``: the labels of texts."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Unpack

import click

from serving.commands.encoder_options import (
    EncoderOptions,
    encoder_options,
    long_text_options,
    say_cut,
)


@click.command()
@encoder_options
@click.argument("texts", nargs=-1)
@click.option("--top-k", type=int, default=1, help="Print so many labels (default: 1).")
@long_text_options
def classify(
    bundle: Path,
    texts: tuple[str, ...],
    top_k: int,
    context_overflow: Literal["refuse", "truncate", "segments"],
    overlap: int | None,
    as_json: bool,
    **opening: Unpack[EncoderOptions],
) -> None:
    """Classify TEXTS (default: the lines of standard input) with the model in BUNDLE.

    Prints a line for each text: its likeliest labels with their scores.
    """
    from serving.encoders.opening import load_encoder

    lines = texts or tuple(sys.stdin.read().splitlines())
    with load_encoder(bundle, **opening) as model:
        results = model.classify(lines, context_overflow=context_overflow, overlap=overlap)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results]))
        return
    for number, result in enumerate(results, 1):
        pairs = list(zip(result.labels, result.scores, strict=True))[:top_k]
        click.echo("  ".join(f"{label} {score:.4f}" for label, score in pairs))
        say_cut(number, result.truncated, result.segments, "classified")
