"""The server under test, in a process of its own, and what it takes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from scripts.load.server_process import free_port
from scripts.soak_test.cases import CAPACITY

_READY_SECONDS = 60
_DRAIN_SECONDS = 30


@dataclass(frozen=True)
class Sample:
    """Memory in MB and open files, of the server and of its worker, after so many requests."""

    requests: int
    server_mb: float
    worker_mb: float
    server_files: int
    worker_files: int


@dataclass
class Server:
    """A server that runs; its log is written to a file."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def sample(self, requests: int) -> Sample:
        """What it takes now. Raises ValueError unless it has one worker."""
        server = psutil.Process(self.process.pid)
        children = server.children()
        (worker,) = (child for child in children if "spawn_main" in " ".join(child.cmdline()))
        return Sample(
            requests,
            server.memory_info().rss / 1e6,
            worker.memory_info().rss / 1e6,
            server.num_fds(),
            worker.num_fds(),
        )

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_DRAIN_SECONDS)

    def errors(self) -> Iterator[str]:
        """What its log has of errors; lines that aren't the log's count too."""
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                yield line
            else:
                if entry["level"] not in ("debug", "info"):
                    yield line


@contextmanager
def running_server(bundle: Path, log: Path, slots: int) -> Iterator[Server]:
    """Start ``serve-llm http`` over a bundle; raises RuntimeError if it doesn't get ready."""
    port = free_port()
    options = {"port": port, "slots": slots, "capacity": CAPACITY, "threads": 1, "queue-limit": 64}
    command = [sys.executable, "-c", "from serving.cli import main; main()"]
    command += ["http", f"model={bundle}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output) as process,
    ):
        try:
            server = Server(port, process, log)
            _wait_until_ready(server)
            yield server
        finally:
            process.kill()


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the server doesn't get ready: {server.log.open().read(2000)}")
