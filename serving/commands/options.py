"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def bundle_argument(command: Command) -> Command:
    """Add the argument that every command on a bundle has."""
    return _add(command, (click.argument("bundle", type=click.Path(path_type=Path)),))


def json_option(command: Command) -> Command:
    """Add --json."""
    return _add(command, (click.option("--json", "as_json", is_flag=True, help="Print JSON."),))


def verify_option(command: Command) -> Command:
    """Add --verify and --no-verify."""
    text = "Compare the files' checksums first (default: yes)."
    return _add(command, (click.option("--verify/--no-verify", default=True, help=text),))


def load_options(command: Command) -> Command:
    """Add the options that open a bundle for generation: parameters of serving.load."""
    options = (
        click.option("--capacity", type=int, help="Most tokens of a sequence, prompt included."),
        click.option("--threads", type=int, help="Threads (default: the physical cores)."),
        click.option("--provider", type=click.Choice(["cpu", "cuda"]), help="Where to run."),
        click.option("--prefill-chunk", type=int, default=512, help="Prompt tokens run at once."),
    )
    return _add(verify_option(command), options)


def generate_options(command: Command) -> Command:
    """Add the sampling and stopping options: parameters of Model.generate."""
    options = (
        click.option("--max-new-tokens", type=int, help="Default: until EOS or the capacity."),
        click.option("--min-new-tokens", type=int, default=0, help="No EOS token before."),
        click.option("--temperature", type=float, default=0.0, help="0 takes the likeliest token."),
        click.option("--top-k", type=int, default=0, help="Keep the k likeliest tokens (0: all)."),
        click.option("--top-p", type=float, default=1.0, help="Keep this much probability."),
        click.option("--min-p", type=float, default=0.0, help="Keep above p times the likeliest."),
        click.option("--repetition-penalty", type=float, default=1.0, help="1 is none."),
        click.option("--presence-penalty", type=float, default=0.0, help="From -2 to 2."),
        click.option("--frequency-penalty", type=float, default=0.0, help="From -2 to 2."),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="End before this text; may be repeated."),
        click.option("--ignore-eos", is_flag=True, help="Go on after EOS tokens."),
    )
    return _add(command, options)


def _add(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
