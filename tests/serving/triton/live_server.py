"""A real Triton server for tests: that of .venv-triton, with its log in a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.triton_server.environment import PYTHONS, find_base_python
from scripts.triton_server.launch import Addresses, Loading
from scripts.triton_server.log import ServerLog
from scripts.triton_server.server import Server
from scripts.triton_server.wheel import wheel_launch

EXPLICIT = Loading(explicit=True)


@contextmanager
def running_triton(
    repository: Path, log: Path, loading: Loading = EXPLICIT, options: Sequence[str] = ()
) -> Iterator[Server]:
    """A server on a repository, once it is ready; raises UserError if it doesn't get ready.

    Skips the test where no Python fits the server.
    """
    if find_base_python() is None:
        pytest.skip(f"Triton's server needs Python {' or '.join(PYTHONS)}")
    addresses = Addresses.free()
    launch = wheel_launch(repository, [*addresses.options, *loading.options, *options])
    with log.open("w") as sink, Server(launch, addresses, ServerLog(sink, verbose=True)) as server:
        for _ in server.wait_until_ready():
            pass
        yield server
