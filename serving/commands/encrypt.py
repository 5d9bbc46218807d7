"""``serve-llm encrypt`` and ``serve-llm decrypt``: a bundle that is encrypted at rest, and back."""

from pathlib import Path

import click

from serving.commands.options import bundle_argument, key_file_option

_out = click.argument("out", type=click.Path(path_type=Path))


@click.command()
@bundle_argument
@_out
@key_file_option
def encrypt(bundle: Path, out: Path, key_file: Path | None) -> None:
    """Write an encrypted copy of BUNDLE to OUT, a directory to make."""
    from serving.encryption import encrypt_bundle

    encrypt_bundle(bundle, out, key_file)
    click.echo(f"{out}: encrypted; without the key it can't be opened, so keep a copy of that")


@click.command()
@bundle_argument
@_out
@key_file_option
def decrypt(bundle: Path, out: Path, key_file: Path | None) -> None:
    """Write a copy of the encrypted BUNDLE in clear to OUT, a directory to make."""
    from serving.encryption import decrypt_bundle

    decrypt_bundle(bundle, out, key_file)
    click.echo(f"{out}: in clear")
