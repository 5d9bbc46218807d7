"""Whether the clients of an ensemble have gone away: asked by the engine, past Triton.

Triton tells a step of an ensemble that its request was cancelled only if that was so when the step
began (``EnsembleContext::ScheduleSteps`` in core's ensemble_scheduler.cc, in 24.10 as in 26.05).
The engine's step began long ago. So it sends a response without ids now and then: for it
postprocessing begins anew, sees it, and says so on a socket of the engine's.
"""

import secrets
import socket
from contextlib import suppress

from serving.closing import Closing

# How long a client that has gone away may go unnoticed.
PROBE_SECONDS = 0.5


class Probes(Closing):
    """The questions of an engine, each with a key that only the one who is asked knows."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind("")  # a free address of Linux's abstract ones, which leave no file
        self._address = self._socket.getsockname()[1:].decode()
        self._gone: dict[str, bool] = {}

    def open(self) -> str:
        """The key for a request; it holds until it is closed."""
        key = f"{self._address} {secrets.token_hex(8)}"
        self._gone[key] = False
        return key

    def is_gone(self, key: str) -> bool:
        """Whether somebody said of the request that its client has gone away."""
        with suppress(BlockingIOError):
            while True:
                said = self._socket.recv(len(key) + 1).decode(errors="replace")
                if said in self._gone:
                    self._gone[said] = True
        return self._gone.get(key, False)

    def close_key(self, key: str) -> None:
        """Forget a request that has ended."""
        self._gone.pop(key, None)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def say_gone(key: str) -> None:
    """Answer that a request's client has gone away; an engine that is gone too isn't told."""
    address = key.partition(" ")[0]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(key.encode(), b"\0" + address.encode())
