"""The command line of the runtime: ``serve-llm``."""

import click

from serving.commands.answer import answer
from serving.commands.bench import bench
from serving.commands.chat import chat
from serving.commands.classify import classify
from serving.commands.doctor import doctor
from serving.commands.embed import embed
from serving.commands.encrypt import decrypt, encrypt
from serving.commands.fill_mask import fill_mask
from serving.commands.generate import generate
from serving.commands.group import CommandGroup
from serving.commands.http import http
from serving.commands.inspect import inspect
from serving.commands.keys import keys
from serving.commands.label_tokens import label_tokens
from serving.commands.ray import ray
from serving.commands.restore import restore
from serving.commands.score import score
from serving.commands.translate import summarize, translate
from serving.commands.triton import triton


@click.group(cls=CommandGroup)
@click.version_option(package_name="export-llm")
def main() -> None:
    """Run and look at bundles that export-llm made; needs no PyTorch."""


COMMANDS = (
    generate,
    chat,
    translate,
    summarize,
    score,
    embed,
    classify,
    fill_mask,
    label_tokens,
    answer,
    http,
    ray,
    triton,
    bench,
    inspect,
    restore,
    encrypt,
    decrypt,
    keys,
    doctor,
)

for command in COMMANDS:
    main.add_command(command)
