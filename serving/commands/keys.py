"""``serve-llm keys``: the API keys of ``serve-llm http``."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import json_option

if TYPE_CHECKING:
    from serving.http.keys import Key, Scope

_file = click.argument("file", type=click.Path(path_type=Path))
_least_one = click.IntRange(min=1)


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of serve-llm http, which are in FILE."""


@keys.command()
@_file
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["generate", "embed", "classify", "metrics"]),
    multiple=True,
    default=("generate", "embed", "classify"),
    help="What it is for; may be repeated (default: all but metrics).",
)
@click.option("--model", "models", multiple=True, help="Only this model; may be repeated.")
@click.option("--requests-per-minute", type=_least_one, help="Default: no limit.")
@click.option("--tokens-per-minute", type=_least_one, help="Of prompts and answers.")
@click.option("--concurrent-requests", type=_least_one, help="Most at a time.")
@click.option("--tokens-per-request", type=_least_one, help="Of a prompt and its answer.")
@click.option("--expires-in-days", type=_least_one, help="Default: never.")
@json_option
def create(
    file: Path,
    name: str,
    scopes: "tuple[Scope, ...]",
    models: tuple[str, ...],
    expires_in_days: int | None,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Add a key called NAME and print it, this one time."""
    from serving.http.keys import KeyLimits, create_key

    expires = expires_in_days and datetime.now(UTC) + timedelta(days=expires_in_days)
    secret = create_key(
        file,
        name,
        scopes,
        models=models or None,
        limits=KeyLimits(**limits),
        expires=expires or None,
    )
    if as_json:
        click.echo(json.dumps({"name": name, "key": secret}))
        return
    click.echo("Keep this key, it is not shown again:", err=True)
    click.echo(secret)


@keys.command("list")
@_file
@json_option
def list_keys(file: Path, as_json: bool) -> None:
    """List the keys: names, scopes, limits, and until when they are valid."""
    from serving.http.keys import read_keys

    rows = [_row(key) for key in read_keys(file)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        details = ", ".join(f"{name} {value}" for name, value in row["limits"].items())
        scopes, models = "+".join(row["scopes"]), "+".join(row["models"] or ("all models",))
        click.echo("  ".join(filter(None, (row["name"], row["state"], scopes, models, details))))


@keys.command()
@_file
@click.argument("name")
def revoke(file: Path, name: str) -> None:
    """Make the key called NAME invalid; a running server sees it at the next request."""
    from serving.http.keys import revoke_key

    revoke_key(file, name)
    click.echo(f"{name}: revoked")


def _row(key: "Key") -> dict[str, Any]:
    """A key for people: its hash is left out."""
    row = key.model_dump(mode="json", exclude={"sha256"})
    row["limits"] = {name: value for name, value in row["limits"].items() if value is not None}
    state = "valid" if key.is_valid(datetime.now(UTC)) else "expired"
    return row | {"state": "revoked" if key.revoked else state}
