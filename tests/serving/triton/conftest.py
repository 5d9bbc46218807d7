"""The Triton server that tests share, and its log beside a test that fails.

Starting it takes seconds. With ``--dist loadgroup``, which scripts/test passes, one worker of
pytest-xdist runs all of them, if each file says ``pytestmark = pytest.mark.xdist_group("triton")``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.triton_server.server import Server
from tests.serving.triton.live_server import running_triton


@dataclass(frozen=True)
class Triton:
    """A server whose clients load and unload the models of ``repository``, empty at first."""

    server: Server
    repository: Path
    log: Path

    @property
    def url(self) -> str:
        return self.server.addresses.url

    @property
    def grpc(self) -> str:
        return self.server.addresses.grpc


@pytest.fixture(scope="session")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    directory = tmp_path_factory.mktemp("triton")
    repository, log = directory / "models", directory / "log"
    repository.mkdir()
    with running_triton(repository, log) as server:
        yield Triton(server, repository, log)


@pytest.fixture
def triton(shared_triton: Triton) -> Iterator[Triton]:
    """The shared server; what it logs meanwhile is shown if the test fails."""
    begin = shared_triton.log.stat().st_size
    yield shared_triton
    with shared_triton.log.open() as log:
        log.seek(begin)
        print(log.read())
