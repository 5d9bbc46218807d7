"""``serve-llm generate``: one prompt in, its continuation out as it comes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from serving.commands.options import (
    Command,
    LoadOptions,
    add_options,
    bundle_argument,
    constraint_options,
    json_option,
    model_options,
)
from serving.commands.source_options import source_options

if TYPE_CHECKING:
    from serving.generation import GenerateOptions, Model
    from serving.result import Generation

_EARLY_STOPPING = {"false": False, "true": True, "never": "never"}


def beam_options(command: Command) -> Command:
    """Add the options of a beam search: parameters of Model.generate."""

    def early_stopping(_context: click.Context, _option: click.Parameter, value: str) -> Any:
        return _EARLY_STOPPING[value]

    options = (
        click.option("--num-beams", type=int, default=1, help="Beams of a search (1: no search)."),
        click.option(
            "--length-penalty", type=float, default=1.0, help="Above 0 favours longer sequences."
        ),
        click.option(
            "--early-stopping",
            type=click.Choice(list(_EARLY_STOPPING)),
            default="false",
            callback=early_stopping,
            help="When a search ends.",
        ),
        click.option("--num-return-sequences", type=int, help="Print so many, best first."),
    )
    return add_options(command, options)


@click.command()
@bundle_argument
@click.argument("prompt", required=False)
@model_options
@constraint_options
@beam_options
@source_options
@click.option("--logprobs", type=int, help="Report so many likeliest tokens (with --json).")
@json_option
def generate(
    bundle: Path,
    prompt: str | None,
    opening: LoadOptions,
    num_return_sequences: int | None,
    source_capacity: int | None,
    as_json: bool,
    **options: Unpack["GenerateOptions"],
) -> None:
    """Continue PROMPT (default: standard input) with the model in BUNDLE."""
    from serving.loading import load

    if prompt is None:
        prompt = sys.stdin.read().removesuffix("\n")
    slots = max(1, options["num_beams"])
    with load(bundle, slots=slots, source_capacity=source_capacity, **opening) as model:
        if options["num_beams"] == 1 and num_return_sequences is None:
            _stream(model, prompt, as_json, options)
        else:
            returned = 1 if num_return_sequences is None else num_return_sequences
            best = model.generate(prompt, num_return_sequences=returned, **options)
            _print_all(best, as_json)


def _stream(model: "Model", prompt: str, as_json: bool, options: "GenerateOptions") -> None:
    """Print the text as it comes, and the speed."""
    from serving.commands.speed import Speed
    from serving.result import Generation

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


def _print_all(results: "list[Generation]", as_json: bool) -> None:
    """Print what a beam search found; several texts each under a line with its score."""
    if as_json:
        sequences = [dataclasses.asdict(result) for result in results]
        click.echo(json.dumps({"sequences": sequences}, ensure_ascii=False))
        return
    for number, result in enumerate(results, 1):
        if len(results) > 1:
            click.echo(f"--- {number}, score {result.score:.4f}")
        click.echo(result.text)
