"""``serve-llm label-tokens``: the entities in a text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Unpack

import click

from serving.commands.encoder_options import EncoderOptions, encoder_options, long_text_options


@click.command("label-tokens")
@encoder_options
@click.argument("text")
@click.option("--grouped/--tokens", default=True, help="Entities, or each token by itself.")
@long_text_options
def label_tokens(
    bundle: Path,
    text: str,
    grouped: bool,
    context_overflow: Literal["refuse", "truncate", "segments"],
    overlap: int | None,
    as_json: bool,
    **opening: Unpack[EncoderOptions],
) -> None:
    """Label what TEXT speaks of with the model in BUNDLE: a line for each entity."""
    from serving.encoders.opening import load_encoder

    with load_encoder(bundle, **opening) as model:
        found = model.label_tokens(
            text, grouped=grouped, context_overflow=context_overflow, overlap=overlap
        )
    if as_json:
        click.echo(json.dumps([asdict(span) for span in found]))
        return
    for span in found:
        click.echo(f"{span.start}-{span.end}  {span.label}  {span.score:.4f}  {span.text}")
