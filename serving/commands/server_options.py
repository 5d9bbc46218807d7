"""What all commands that start a server are told: bundles, addresses, scheduling and limits."""

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from serving.commands.encoder_options import batch_option
from serving.commands.options import (
    Command,
    add_options,
    key_file_option,
    load_options,
    named_directories,
    refuse_given,
    verify_option,
)
from serving.errors import UserError

if TYPE_CHECKING:
    from serving.http.keys import KeyStore
    from serving.http.listening import Listening
    from serving.http.request_limits import RequestLimits
    from serving.http.served_model import ServedModels

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "cryptography")

# What only models that generate text have a use for.
_FOR_GENERATORS = frozenset(
    {
        "slots",
        "prefix_rows",
        "target_latency",
        "new_tokens",
        "choices",
        "draft",
        "adapters",
        "capacity",
        "provider",
        "runtime",
        "prefill_chunk",
        "prepack",
    }
)

# Of the options: addresses and who may use them, parameters of RequestLimits, of a worker, and of
# serving.load.
_LISTENING = ("host", "port", "tls_cert", "tls_key", "insecure_http")
_LIMITS = ("request_seconds", "body_bytes", "prompt_tokens", "new_tokens", "choices")
_SCHEDULING = ("target_latency", "queue_limit", "silent_seconds")
_LOADING = (
    "slots",
    "prefix_rows",
    "draft",
    "adapters",
    "target",
    "capacity",
    "source_capacity",
    "threads",
    "provider",
    "runtime",
    "prefill_chunk",
    "prepack",
    "batch_tokens",
    "verify",
    "key_file",
)


_WORKER_TIMEOUT = click.option(
    "--worker-timeout",
    "silent_seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=120.0,
    help="An engine that has work and does nothing for so long is replaced (default: 120).",
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options, checked: ``bundles`` by the names that requests choose them by.

    ``scheduling`` are parameters of open_models, ``loading`` those of serving.load and of
    serving.load_encoder.
    """

    bundles: dict[str, Path]
    keys: "KeyStore"
    listening: "Listening"
    limits: "RequestLimits"
    drain_seconds: float
    log_level: str
    scheduling: dict[str, Any]
    loading: dict[str, Any]


def server_options(command: Command) -> Command:
    """Add the bundles and all options; the command gets them as one ``server``."""

    @functools.wraps(command)
    def with_server(**arguments: Any) -> Any:
        return command(server=_server(arguments), **arguments)

    bundles = click.argument("bundles", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
    options = (
        click.option(
            "--served-model-name", help="The only bundle's name (default: its directory's)."
        ),
        _listening_options,
        scheduling_options,
        _WORKER_TIMEOUT,
        _limit_options,
        click.option(
            "--draft", type=click.Path(path_type=Path), metavar="BUNDLE", help="A smaller model."
        ),
        click.option(
            "--adapter",
            "adapters",
            multiple=True,
            callback=named_directories,
            metavar="NAME=DIRECTORY",
            help="A LoRA adapter of the only bundle, served as MODEL:NAME; may be repeated.",
        ),
        batch_option,
        load_options,
        verify_option,
        key_file_option,
    )
    return add_options(cast(Command, with_server), (bundles, *options))


def refuse_unused(models: "ServedModels") -> None:
    """Raise UserError for a given option that none of the bundles has a use for."""
    if not models.generators:
        refuse_given(_FOR_GENERATORS, "is for models that generate text: leave it out.")
    if not models.encoders:
        refuse_given({"batch_tokens"}, "is for encoders: leave it out.")


def _server(arguments: dict[str, Any]) -> ServerOptions:
    """Take the options out of a command's arguments; raises UserError for unsafe ones."""
    _require_packages()
    from serving.http.keys import KeyStore
    from serving.http.listening import check_listening
    from serving.http.request_limits import RequestLimits

    def take(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: arguments.pop(name) for name in names}

    keys = KeyStore.open(arguments.pop("api_keys"))
    if arguments["adapters"] and len(arguments["bundles"]) > 1:
        raise click.UsageError("--adapter is for one bundle: start a server for each.")
    return ServerOptions(
        bundles=_named(arguments.pop("bundles"), arguments.pop("served_model_name")),
        keys=keys,
        listening=check_listening(keys=keys.keys, **take(_LISTENING)),
        limits=RequestLimits(**take(_LIMITS)),
        drain_seconds=arguments.pop("drain_seconds"),
        log_level=arguments.pop("log_level"),
        scheduling=take(_SCHEDULING),
        loading=take(_LOADING),
    )


def _listening_options(command: Command) -> Command:
    """Add the options that say where the server listens, and to whom."""
    file = click.Path(path_type=Path)
    options = (
        click.option("--host", default="127.0.0.1", help="Default: 127.0.0.1."),
        click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Default: 8000."),
        click.option("--api-keys", type=file, help="Key file that serve-llm keys create made."),
        click.option("--tls-cert", type=file, help="Certificate chain in PEM format."),
        click.option("--tls-key", type=file, help="The certificate's private key."),
        click.option(
            "--insecure-http", is_flag=True, help="No TLS on other addresses than loopback."
        ),
        click.option(
            "--drain-seconds",
            type=click.FloatRange(0),
            default=30.0,
            help="How long running requests may go on after SIGTERM (default: 30).",
        ),
        click.option(
            "--log-level", type=click.Choice(["debug", "info", "warning"]), default="info"
        ),
    )
    return add_options(command, options)


def scheduling_options(command: Command) -> Command:
    """Add the options of an engine's scheduler."""
    options = (
        click.option("--slots", type=click.IntRange(1), help="Sequences at a time (default: 4)."),
        click.option(
            "--prefix-rows",
            type=click.IntRange(0),
            default=8,
            help="Rows of KV cache that keep ended sequences (default: 8; encoder-decoders: none).",
        ),
        click.option(
            "--source-capacity",
            type=click.IntRange(1),
            help="Most tokens that an encoder-decoder reads.",
        ),
        click.option(
            "--target-latency",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="Time between two tokens of a stream to aim at (default: none).",
        ),
        click.option(
            "--queue-limit",
            type=click.IntRange(1),
            default=128,
            help="Sequences that may wait for a slot (default: 128).",
        ),
    )
    return add_options(command, options)


def _limit_options(command: Command) -> Command:
    """Add the options that limit each request."""
    number = click.IntRange(1)
    options = (
        click.option(
            "--request-timeout",
            "request_seconds",
            type=click.FloatRange(0, min_open=True),
            default=600.0,
            help="Seconds until a request is given up (default: 600).",
        ),
        click.option("--body-bytes", type=number, default=2 << 20, help="Default: 2 MB."),
        click.option("--prompt-tokens", type=number, help="Default: the capacity."),
        click.option("--new-tokens", type=number, help="Default: the capacity."),
        click.option("--choices", type=number, default=16, help="Of a request (default: 16)."),
    )
    return add_options(command, options)


def _named(bundles: tuple[str, ...], only_name: str | None) -> dict[str, Path]:
    """The bundles by the names that requests choose them by."""
    if only_name is not None:
        if len(bundles) > 1:
            raise click.UsageError("--served-model-name is for one bundle: write NAME=BUNDLE.")
        return {only_name: Path(bundles[0])}
    named: dict[str, Path] = {}
    for argument in bundles:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = Path(argument).resolve().name, argument
        if not name or name in named:
            raise click.UsageError(f"Give {path!r} a name of its own: NAME={path}.")
        named[name] = Path(path)
    return named


def _require_packages() -> None:
    """Raise UserError if the server's packages aren't all installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"The HTTP server needs {', '.join(missing)}: install export-llm[http].")
