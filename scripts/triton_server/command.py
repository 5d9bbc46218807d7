"""The command line of scripts/triton."""

import signal
import sys
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from scripts.triton_server.clients import answer, client_commands
from scripts.triton_server.container import container_launch, find_engine
from scripts.triton_server.launch import Addresses, Launch, Loading, check_repository
from scripts.triton_server.log import ServerLog
from scripts.triton_server.server import Server
from scripts.triton_server.wheel import wheel_launch
from serving.errors import UserError

_REPOSITORY = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)


@click.command()
@click.argument("repository", type=_REPOSITORY)
@click.argument("triton_options", nargs=-1, type=click.UNPROCESSED)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--http-port", type=int, default=8000, show_default=True)
@click.option("--grpc-port", type=int, default=8001, show_default=True)
@click.option("--metrics-port", type=int, default=8002, show_default=True)
@click.option("--poll", is_flag=True, help="Take up changes of the repository.")
@click.option("--explicit", is_flag=True, help="Load no model: clients load and unload them.")
@click.option("--load-model", multiple=True, metavar="NAME", help="Load this one; as --explicit.")
@click.option("--ask", metavar="TEXT", help="On free ports: print a streamed answer, and end.")
@click.option("--container", metavar="IMAGE", help="Run in a container of this image.")
@click.option("--wheel", is_flag=True, help="Run the server of PyPI's nvidia-pytriton.")
@click.option("--verbose", is_flag=True, help="Show all of the server's log, not errors only.")
def main(
    repository: Path,
    triton_options: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    poll: bool,
    explicit: bool,
    load_model: tuple[str, ...],
    ask: str | None,
    container: str | None,
    wheel: bool,
    verbose: bool,
) -> None:
    """Start a Triton server on a model REPOSITORY; options for tritonserver come after --.

    It runs in a container if Docker or Podman has an image nvcr.io/nvidia/tritonserver:...-py3
    already, else from PyPI's nvidia-pytriton in .venv-triton, which is made first. Ctrl-C ends it
    when its requests have ended, a second one at once.
    """
    addresses = (
        Addresses(host, http_port, grpc_port, metrics_port) if ask is None else Addresses.free()
    )
    loading = Loading(poll, explicit or bool(load_model), load_model)
    try:
        if poll and loading.explicit:
            raise UserError("--poll and --explicit exclude each other: leave one of them out.")
        if container and wheel:
            raise UserError("--container and --wheel exclude each other: leave one of them out.")
        addresses.check_free()
        if not loading.explicit and not poll:
            check_repository(repository)
        options = [*addresses.options, *loading.options, *triton_options]
        launch = _launch(repository, options, container, wheel=wheel)
        log = ServerLog(sys.stderr, verbose=verbose)
        sys.exit(_serve(launch, addresses, log, ask))
    except UserError as error:
        raise click.ClickException(str(error)) from error


def _launch(repository: Path, options: list[str], container: str | None, *, wheel: bool) -> Launch:
    """In a container if one is asked for or is there, else from the wheel."""
    with Console(stderr=True).status("Preparing the server"):
        engine = None if wheel else find_engine()
        if container and not engine:
            raise UserError("Neither Docker nor Podman answers: start one, or use --wheel.")
        if engine and (image := container or engine.newest_image()):
            return container_launch(engine, image, repository, options)
        return wheel_launch(repository, options)


def _serve(launch: Launch, addresses: Addresses, log: ServerLog, text: str | None) -> int:
    """Run a server until it is told to end, or has answered a text; its exit code."""
    with Server(launch, addresses, log) as server:
        signals: list[int] = []

        def forward(number: int, _: FrameType | None) -> None:
            server.send(signal.SIGKILL if signals else signal.SIGTERM)
            signals.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, forward)
        try:
            with Console(stderr=True).status("Starting") as status:
                for model in server.wait_until_ready():
                    status.update(f"Loading {model}")
            if text is None:
                _announce(addresses)
            else:
                _print_answer(addresses, text)
                server.send(signal.SIGTERM)
        except (UserError, OSError):
            if not signals:  # else it is what they led to
                raise
        return server.wait()


def _announce(addresses: Addresses) -> None:
    click.echo(f"Ready: {addresses.url}, gRPC at {addresses.grpc}, {addresses.metrics}")
    for command in client_commands(addresses.url):
        click.echo(f"\n{command}")


def _print_answer(addresses: Addresses, text: str) -> None:
    for part in answer(addresses.url, text):
        click.echo(part, nl=False)
    click.echo()
