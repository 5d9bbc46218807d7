"""``serve-llm fill-mask``: what may stand in the place of a mask."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import click

from serving.commands.encoder_options import EncoderOptions, encoder_options


@click.command("fill-mask")
@encoder_options
@click.argument("text")
@click.option("--top-k", type=int, default=5, help="Candidates for each mask (default: 5).")
def fill_mask(
    bundle: Path, text: str, top_k: int, as_json: bool, **opening: Unpack[EncoderOptions]
) -> None:
    """Find the likeliest tokens for each mask in TEXT with the model in BUNDLE."""
    from serving.encoders.opening import load_encoder

    with load_encoder(bundle, **opening) as model:
        found = model.fill_mask(text, top_k=top_k)
    if as_json:
        click.echo(json.dumps([[asdict(candidate) for candidate in mask] for mask in found]))
        return
    for candidates in found:
        for candidate in candidates:
            click.echo(f"{candidate.score:.4f}  {candidate.token}  {candidate.text}")
