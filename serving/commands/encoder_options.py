"""Options that the commands on encoders share."""

from pathlib import Path
from typing import Literal, TypedDict

import click

from serving.commands.options import (
    Command,
    add_options,
    bundle_argument,
    json_option,
    key_file_option,
    target_option,
    verify_option,
)


class EncoderOptions(TypedDict):
    """The parameters of serving.load_encoder that commands offer."""

    target: Literal["onnxruntime", "tensorrt-rtx", "tensorrt"] | None
    threads: int | None
    batch_tokens: int
    verify: bool
    key_file: Path | None


def encoder_options(command: Command) -> Command:
    """Add BUNDLE, the options that open it, and --json."""
    threads = click.option("--threads", type=int, help="Threads (default: the physical cores).")
    added = (bundle_argument, target_option, threads, batch_option)
    return add_options(command, (*added, verify_option, key_file_option, json_option))


def batch_option(command: Command) -> Command:
    """Add --batch-tokens."""
    text = "Most tokens of a batch, with padding (default: 4096)."
    return add_options(
        command, (click.option("--batch-tokens", type=int, default=4096, help=text),)
    )


def long_text_options(command: Command) -> Command:
    """Add what becomes of texts that are too long: parameters of EncoderModel's methods."""
    options = (
        click.option(
            "--context-overflow",
            type=click.Choice(["refuse", "truncate", "segments"]),
            default="refuse",
            help="A text that is too long: refuse it, drop its end, or join what its parts give.",
        ),
        click.option("--overlap", type=int, help="Tokens that two segments share."),
    )
    return add_options(command, options)


def say_cut(number: int, truncated: bool, segments: int, done: str) -> None:
    """Say on stderr what was ``done``, such as embedded, of a text that was too long."""
    if truncated:
        click.echo(f"Text {number} was too long: its beginning was {done}.", err=True)
    elif segments > 1:
        click.echo(f"Text {number} was too long: it ran in {segments} segments.", err=True)
