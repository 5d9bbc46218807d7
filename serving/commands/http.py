"""``serve-llm http``: an HTTP server with OpenAI's API."""

from pathlib import Path
from typing import Any

import click

from serving.commands.options import (
    LoadOptions,
    add_options,
    key_file_option,
    load_options,
    verify_option,
)
from serving.errors import UserError


@click.command()
@click.argument("bundles", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Default: 8000.")
