"""The command lines of scripts/edge that reach a device: deploy, update, rollback, status, run."""

import functools
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from scripts.edge.delivery import Delivery, deliver
from scripts.edge.host import Host
from scripts.edge.package import Package
from serving.commands.options import json_option
from serving.commands.progress import progress_bar
from serving.errors import UserError

ROOT = "/opt/export-llm"


@dataclass(frozen=True)
class Connection:
    """How to reach a device; see Host."""

    host: str
    root: str
    config: Path | None
    sudo: bool

    def open(self) -> Host:
        """Connect to it. Raises UserError if that fails."""
        if not os.path.isabs(self.root):
            raise UserError(f"--root is {self.root!r}, but must begin with a /.")
        if self.host.startswith("-"):
            raise UserError(f"HOST is {self.host!r}, but must be a name that ssh knows.")
        return Host(self.host, self.root.rstrip("/"), config=self.config, sudo=self.sudo)


def host_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add HOST and what says how to reach it, which the command gets as ``connection``."""

    @functools.wraps(command)
    def connected(
        host: str, root: str, ssh_config: Path | None, sudo: bool, **options: Any
    ) -> None:
        try:
            command(connection=Connection(host, root, ssh_config, sudo), **options)
        except UserError as error:
            raise click.ClickException(str(error)) from error

    for option in (
        click.option("--sudo", is_flag=True, help="Become root there with sudo."),
        click.option("--ssh-config", type=click.Path(path_type=Path), help="As ssh -F."),
        click.option("--root", default=ROOT, show_default=True, help="Where packages are there."),
    ):
        option(connected)
    return click.argument("host")(connected)


def _deliver(connection: Connection, package: Path, as_json: bool, *, only_changes: bool) -> None:
    begin = perf_counter()
    with ExitStack() as stack:
        opened = stack.enter_context(Package(package))
        host = stack.enter_context(connection.open())
        bar = stack.enter_context(progress_bar())
        task = bar.add_task(f"Sending to {host.name}", total=1.0)
        delivery = deliver(
            host,
            opened,
            only_changes=only_changes,
            progress=lambda share: bar.update(task, completed=share),
        )
    seconds = round(perf_counter() - begin, 3)
    click.echo(
        json.dumps(delivery._asdict() | {"seconds": seconds})
        if as_json
        else _sentence(connection.host, delivery)
    )


def _sentence(host: str, delivery: Delivery) -> str:
    return (
        f"{host}: {delivery.current} is served, before it {delivery.previous or 'nothing'}; "
        f"{delivery.sent} of {delivery.files} files sent, {delivery.bytes_sent:,} bytes"
    )


@click.command()
@host_options
@click.argument("package", type=click.Path(path_type=Path))
@json_option
def deploy(connection: Connection, package: Path, as_json: bool) -> None:
    """Send all of PACKAGE to HOST, check it there, and switch to it.

    What was served before is kept for scripts/edge/rollback.
    """
    _deliver(connection, package, as_json, only_changes=False)


@click.command()
@host_options
@click.argument("package", type=click.Path(path_type=Path))
@json_option
def update(connection: Connection, package: Path, as_json: bool) -> None:
    """Send what PACKAGE changes to HOST, check it all there, and switch to it."""
    _deliver(connection, package, as_json, only_changes=True)


@click.command()
@host_options
def rollback(connection: Connection) -> None:
    """Let HOST serve again what it served before the last deployment."""
    with connection.open() as host:
        (line,) = host.run("rollback")
    click.echo(f"{connection.host}: {line.removeprefix('current ')} is served")


@click.command()
@host_options
@json_option
def status(connection: Connection, as_json: bool) -> None:
    """Say which versions HOST has, how much room, and whether the service runs."""
    with connection.open() as host:
        lines = host.run("status")
    facts: dict[str, Any] = dict(line.split(" ", 1) for line in lines)
    facts["free_bytes"] = int(facts.pop("free")) * 1024
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            click.echo(f"{name}: {value or 'none'}")


@click.command()
@host_options
@click.option("--stop", is_flag=True, help="Stop the service, and don't start it at boot.")
@click.option("--foreground", is_flag=True, help="Until it is interrupted, without systemd.")
def run(connection: Connection, stop: bool, foreground: bool) -> None:
    """Start what was deployed to HOST, as a service of systemd, now and at every boot."""
    if stop and foreground:
        raise click.UsageError("--foreground ends with Ctrl-C: leave --stop out.")
    with connection.open() as host:
        if foreground:
            host.follow("foreground")
        else:
            host.run("stop" if stop else "start")
    click.echo(f"{connection.host}: {'stopped' if stop or foreground else 'started'}")
