"""``serve-llm restore``: weights back into a bundle that was exported without them."""

import json
from pathlib import Path

import click

from serving.commands.options import bundle_argument, json_option, verify_option


@click.command()
@bundle_argument
@click.argument("checkpoint", type=click.Path(path_type=Path))
@verify_option
@json_option
def restore(bundle: Path, checkpoint: Path, verify: bool, as_json: bool) -> None:
    """Put the weights of CHECKPOINT, a directory, into a BUNDLE exported with --strip-weights."""
    from serving.restoring import restore_bundle

    restored = restore_bundle(bundle, checkpoint, verify=verify)
    if as_json:
        click.echo(json.dumps({"restored": [str(engine) for engine in restored]}))
        return
    for engine in restored:
        click.echo(f"{engine}: {engine.stat().st_size / 1e6:,.1f} MB, as it was built")
    if not restored:
        click.echo(f"{bundle} has its weights")
