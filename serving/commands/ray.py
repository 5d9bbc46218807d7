"""``serve-llm ray``: the HTTP server's application on Ray Serve, in several replicas."""

import signal
import threading
from importlib.util import find_spec

import click

from serving.commands.options import Command, add_options
from serving.commands.server_options import ServerOptions, server_options
from serving.errors import UserError


def replica_options(command: Command) -> Command:
    """Add the options that say how many replicas there are, and what each has."""
    options = (
        click.option("--address", help="A Ray cluster to join (default: start one here)."),
        click.option("--min-replicas", type=click.IntRange(1), default=1, help="Default: 1."),
        click.option("--max-replicas", type=click.IntRange(1), default=1, help="Default: 1."),
        click.option(
            "--target-ongoing-requests",
            type=click.FloatRange(0, min_open=True),
            help="Of each replica; more replicas are started above (default: the slots).",
        ),
        click.option(
            "--cpus",
            type=click.FloatRange(0, min_open=True),
            default=1.0,
            help="Of each replica, and its threads (default: 1).",
        ),
        click.option("--gpus", type=click.FloatRange(0), default=0.0, help="Of each replica."),
    )
    return add_options(command, options)


@click.command()
@replica_options
@server_options
def ray(
    server: ServerOptions,
    address: str | None,
    min_replicas: int,
    max_replicas: int,
    target_ongoing_requests: float | None,
    cpus: float,
    gpus: float,
) -> None:
    """Serve each BUNDLE with OpenAI's API on Ray Serve, until a signal ends it."""
    if find_spec("ray") is None:
        raise UserError("Replicas need the Python package ray: install export-llm[ray].")
    from serving.http.ray_app import Settings
    from serving.http.ray_serving import serving_on_ray

    if min_replicas > max_replicas:
        raise click.UsageError("--min-replicas is larger than --max-replicas: raise the latter.")
    settings = Settings(
        bundles={name: path.resolve() for name, path in server.bundles.items()},
        limits=server.limits,
        loading=server.loading,
        **server.scheduling,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        target_ongoing_requests=target_ongoing_requests,
        cpus=cpus,
        gpus=gpus,
        drain_seconds=server.drain_seconds,
        log_level=server.log_level,
    )
    ended = threading.Event()
    with serving_on_ray(settings, server.keys, server.listening, address):
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray has set handlers of its own
            signal.signal(number, lambda *_: ended.set())
        click.echo(f"{', '.join(server.bundles)}: {server.listening.url}/v1")
        ended.wait()
