"""What commands that generate are told of an encoder-decoder's sources and outputs."""

import click

from serving.commands.options import Command, add_options


def source_options(command: Command) -> Command:
    """Add the options of encoder-decoders, most of them parameters of Model.generate."""
    options = (
        click.option("--decoder-prompt", help="What an encoder-decoder's output goes on from."),
        click.option("--source-language", help="An encoder-decoder's prompt is in this language."),
        click.option("--target-language", help="An encoder-decoder is to answer in this language."),
        click.option("--source-capacity", type=int, help="Most tokens that an encoder reads."),
    )
    return add_options(command, options)
