"""The command line of scripts/edge/pack."""

import json
from contextlib import ExitStack
from pathlib import Path

import click

from scripts.edge.architectures import ARCHITECTURES
from scripts.edge.archives import (
    SIGNATURE,
    SUMS,
    checksums,
    identity,
    write_deb,
    write_tar,
    written,
)
from scripts.edge.contents import made, package_files, settings_of
from scripts.edge.libraries import build_runtime
from scripts.edge.sealing import encrypted, sign
from serving.bundle import is_encrypted, open_bundle
from serving.commands.options import bundle_argument, json_option
from serving.commands.progress import progress_bar
from serving.errors import UserError


@click.command()
@bundle_argument
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "--arch",
    type=click.Choice(list(ARCHITECTURES)),
    required=True,
    help="The device's processor.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["tar", "deb"]),
    default="tar",
    show_default=True,
    help="For scripts/edge/deploy, or for apt.",
)
@click.option("--version", help="Begins with a digit (default: when the bundle was made).")
@click.option("--context", type=click.IntRange(1), help="Tokens of a text (default: 2048 at most).")
@click.option(
    "--listen",
    default="/run/@UNIT@.socket",
    show_default=True,
    metavar="ADDRESS",
    help="What the service listens on: a path, or 127.0.0.1:PORT.",
)
@click.option("--sign", "key", metavar="KEY", type=click.Path(path_type=Path), help="An SSH key.")
@click.option(
    "--encrypt", "recipient", metavar="KEY", help='The device\'s age recipient, "age1...".'
)
@click.option(
    "--runtime",
    type=click.Path(path_type=Path),
    help="Where CMake installed the runtime for that processor (default: it is built).",
)
@click.option("--force", is_flag=True, help="Replace PACKAGE.")
@json_option
def pack(
    bundle: Path,
    package: Path,
    arch: str,
    kind: str,
    version: str | None,
    context: int | None,
    listen: str,
    key: Path | None,
    recipient: str | None,
    runtime: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write PACKAGE: what a device needs of BUNDLE, and all that runs it there."""
    if kind == "deb" and (key or recipient):
        raise click.UsageError(
            "A .deb is neither signed nor encrypted: apt checks its repository's signature. "
            "Leave --sign and --encrypt out, or take --format tar."
        )
    try:
        if is_encrypted(bundle):
            raise UserError(
                f"The bundle {str(bundle)!r} is encrypted with a key that devices don't have: "
                "decrypt it with serve-llm decrypt and pack it with --encrypt."
            )
        opened = open_bundle(bundle)
        settings = settings_of(opened, arch, version, context, listen)
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar())
            bar.add_task(f"Packing {bundle}", total=None)
            partial = stack.enter_context(written(package, force=force))
            folder = runtime or build_runtime(ARCHITECTURES[arch])
            files = package_files(opened, folder, settings)
            sums = checksums(files)
            if recipient:
                files = stack.enter_context(encrypted(files, recipient, package.parent))
            files[SUMS] = sums
            if key:
                files[SIGNATURE] = sign(sums, key)
            if kind == "deb":
                write_deb(partial, files, settings, made(opened))
            else:
                write_tar(partial, files, made(opened))
    except UserError as error:
        raise click.ClickException(str(error)) from error
    summary = {
        "package": str(package),
        "id": identity(settings.version, sums),
        "bytes": package.stat().st_size,
        "files": len(files),
    }
    if as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo(f"{package}: {summary['id']}, {summary['bytes']:,} bytes, {len(files)} files")
