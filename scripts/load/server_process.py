"""A server in a process of its own, on a free port of the loopback interface."""

import atexit
import socket
import subprocess
import time

import httpx


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(command: list[str], ready: str, seconds: float = 300) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, and wait until the address ``ready`` is 200.

    Raises RuntimeError if it ends, or isn't ready in time.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    atexit.register(process.kill)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with code {process.returncode}")
        try:
            if httpx.get(ready, timeout=5).status_code == httpx.codes.OK:
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{command[0]} isn't ready after {seconds:.0f} seconds")
