"""``serve-llm ray``: the HTTP server's application on Ray Serve, in several replicas."""

import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from serving.commands.http import (
    LIMITS,
    limit_options,
    listening_options,
    named_bundles,
    require_packages,
    scheduling_options,
)
from serving.commands.options import (
    Command,
    add_options,
    key_file_option,
    load_options,
    verify_option,
)
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
@click.argument("bundles", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
@click.option("--served-model-name", help="The only bundle's name (default: its directory's).")
@replica_options
@listening_options
@scheduling_options
@limit_options
@click.option("--draft", type=click.Path(path_type=Path), metavar="BUNDLE", help="A smaller model.")
@load_options
@verify_option
@key_file_option
def ray(
    bundles: tuple[str, ...],
    served_model_name: str | None,
    address: str | None,
    min_replicas: int,
    max_replicas: int,
    target_ongoing_requests: float | None,
    cpus: float,
    gpus: float,
    host: str,
    port: int,
    api_keys: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure_http: bool,
    drain_seconds: float,
    log_level: str,
    target_latency: float | None,
    queue_limit: int,
    **options: Any,
) -> None:
    """Serve each BUNDLE with OpenAI's API on Ray Serve, until a signal ends it."""
    require_packages()
    if find_spec("ray") is None:
        raise UserError("Replicas need the Python package ray: install export-llm[ray].")
    from serving.http.keys import KeyStore
    from serving.http.listening import check_listening
    from serving.http.ray_app import Settings
    from serving.http.ray_serving import serving_on_ray
    from serving.http.request_limits import RequestLimits

    if min_replicas > max_replicas:
        raise click.UsageError("--min-replicas is larger than --max-replicas: raise the latter.")
    keys = KeyStore.open(api_keys)
    listening = check_listening(
        host,
        port,
        keys=keys.keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure_http=insecure_http,
    )
    named = named_bundles(bundles, served_model_name)
    settings = Settings(
        bundles={name: path.resolve() for name, path in named.items()},
        limits=RequestLimits(**{name: options.pop(name) for name in LIMITS}),
        loading=options,
        target_latency=target_latency,
        queue_limit=queue_limit,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        target_ongoing_requests=target_ongoing_requests,
        cpus=cpus,
        gpus=gpus,
        drain_seconds=drain_seconds,
        log_level=log_level,
    )
    ended = threading.Event()
    with serving_on_ray(settings, keys, listening, address):
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray has set handlers of its own
            signal.signal(number, lambda *_: ended.set())
        click.echo(f"{', '.join(named)}: {listening.url}/v1")
        ended.wait()
