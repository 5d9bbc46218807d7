"""What it takes to start a server: its command, its ports, and what ends it for sure."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from serving.errors import UserError


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: one interface, three ports."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    @classmethod
    def free(cls) -> Self:
        """Ports of the loopback interface that nobody listens on."""
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(3)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return cls("127.0.0.1", *(probe.getsockname()[1] for probe in probes))

    @property
    def url(self) -> str:
        """That of HTTP requests from this machine."""
        return f"http://{self._local}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """That of gRPC requests from this machine, as tritonclient takes it."""
        return f"{self._local}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """That of the metrics."""
        return f"http://{self._local}:{self.metrics_port}/metrics"

    @property
    def options(self) -> list[str]:
        """Those of tritonserver."""
        kinds = {
            "http": self.http_port,
            "grpc": self.grpc_port,
            "metrics": self.metrics_port,
        }
        return [
            word
            for kind, port in kinds.items()
            for word in (f"--{kind}-address={self.host}", f"--{kind}-port={port}")
        ]

    @property
    def _local(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    def check_free(self) -> None:
        """Raise UserError if somebody listens already, or the interface isn't this machine's."""
        for kind in ("http", "grpc", "metrics"):
            port = getattr(self, f"{kind}_port")
            with socket.socket() as probe:
                # As the server does: connections that have just ended don't count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise UserError(
                        f"Port {port} of {self.host} can't be listened on ({error.strerror}): "
                        f"choose another one with --{kind}-port."
                    ) from error


@dataclass(frozen=True)
class Loading:
    """Which models of a repository are loaded, and when.

    All when the server starts, unless it ``polls``, which also takes up changes, or is
    ``explicit``, where clients load and unload models and only ``models`` are there from the start.
    """

    polls: bool = False
    explicit: bool = False
    models: Sequence[str] = ()

    @property
    def options(self) -> list[str]:
        """Those of tritonserver."""
        if self.polls:
            return ["--model-control-mode=poll"]
        if self.explicit:
            return [
                "--model-control-mode=explicit",
                *(f"--load-model={name}" for name in self.models),
            ]
        return []


@dataclass(frozen=True)
class Launch:
    """A server's command, with the environment that it adds to ours.

    ``shm_prefix`` begins the names of its files in /dev/shm. ``removal`` is a command that ends
    what the command has started elsewhere and left behind.
    """

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    shm_prefix: str | None = None
    removal: list[str] | None = None


def check_repository(repository: Path) -> None:
    """Raise UserError unless a directory has models."""
    if not any(repository.glob("*/config.pbtxt")):
        raise UserError(
            f"{repository} has no models: write one with 'serve-llm triton BUNDLE {repository}'."
        )
