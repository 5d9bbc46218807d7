"""``serve-llm answer``: the part of a text that answers a question."""

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
@click.argument("question")
@click.argument("context", required=False)
@long_text_options
def answer(
    bundle: Path,
    question: str,
    context: str | None,
    context_overflow: Literal["refuse", "truncate", "segments"],
    overlap: int | None,
    as_json: bool,
    **opening: Unpack[EncoderOptions],
) -> None:
    """Find in CONTEXT (default: standard input) what answers QUESTION, with the model in BUNDLE."""
    from serving.encoders.opening import load_encoder

    text = sys.stdin.read() if context is None else context
    with load_encoder(bundle, **opening) as model:
        found = model.answer(question, text, context_overflow=context_overflow, overlap=overlap)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    click.echo(f"{found.text}  ({found.score:.4f}, {found.start}-{found.end})")
    say_cut(1, found.truncated, found.segments, "searched")
