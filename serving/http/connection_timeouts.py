"""Time limits of connections that uvicorn lacks: it has one for idle connections only.

Without them a client that opens connections and sends nothing, or a byte now and then, keeps them.
So does one that asks for a stream and doesn't read it.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """Uvicorn's protocol, which closes connections that take too long.

    The headers of a request must be there after ``header_seconds``. What is sent must be read: a
    connection that takes nothing for ``stalled_seconds`` is dropped, with what wasn't sent yet.
    """

    header_seconds: float
    stalled_seconds: float
    _header_timer: asyncio.TimerHandle | None = None
    _stalled_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_headers(self.header_seconds)

    def handle_events(self) -> None:
        """Headers are complete as soon as there is a request that wasn't answered."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._header_timer)

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn closes a connection on which nothing comes."""
        self._expect_headers(self.timeout_keep_alive + self.header_seconds)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client doesn't read, and buffers are full."""
        super().pause_writing()
        _cancel(self._stalled_timer)
        self._stalled_timer = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It read something."""
        _cancel(self._stalled_timer)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        _cancel(self._header_timer)
        _cancel(self._stalled_timer)
        super().connection_lost(exc)

    def _expect_headers(self, seconds: float) -> None:
        _cancel(self._header_timer)
        self._header_timer = self.loop.call_later(seconds, self.transport.close)


def timed_protocol(header_seconds: float, stalled_seconds: float) -> type[TimedProtocol]:
    """The protocol with these limits, for uvicorn's option ``http``."""
    limits = {"header_seconds": header_seconds, "stalled_seconds": stalled_seconds}
    return type("LimitedProtocol", (TimedProtocol,), limits)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
