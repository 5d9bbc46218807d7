"""``serve-llm generate``: one prompt in, its continuation out as it comes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from serving.commands.options import (
    LoadOptions,
    bundle_argument,
    constraint_options,
    json_option,
    model_options,
)

if TYPE_CHECKING:
    from serving.generation import GenerateOptions


@click.command()
@bundle_argument
@click.argument("prompt", required=False)
@model_options
@constraint_options
@click.option("--logprobs", type=int, help="Report so many likeliest tokens (with --json).")
@json_option
def generate(
    bundle: Path,
    prompt: str | None,
    opening: LoadOptions,
    as_json: bool,
    **options: Unpack["GenerateOptions"],
) -> None:
    """Continue PROMPT (default: standard input) with the model in BUNDLE."""
    from serving.commands.speed import Speed
    from serving.generation import Generation
    from serving.loading import load

    if prompt is None:
        prompt = sys.stdin.read().removesuffix("\n")
    with load(bundle, slots=1, **opening) as model:
        tokens = model.generate(prompt, stream=True, **options)
        result = Generation(prompt_tokens=len(model.encode(prompt)))
        if options.get("logprobs") is not None:
            result.logprobs = []
        speed = Speed(result.prompt_tokens)
        for token in speed.track(model.engine, tokens):
            result.add(token)
            if not as_json:
                click.echo(token.text, nl=False)
        if as_json:
            document = dataclasses.asdict(result) | {"speed": speed.summary()}
            click.echo(json.dumps(document, ensure_ascii=False))
        else:
            click.echo()
            click.echo(speed.line(), err=True)
