"""A time limit for a request's headers, which uvicorn has for idle connections only.

Without it a client that opens connections and sends nothing, or a byte now and then, keeps them.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def header_timeout_protocol(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol with a limit, for its option ``http``."""

    class HeaderTimeout(H11Protocol):
        """Closes a connection whose next request's headers aren't there in time."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer(seconds)

        def handle_events(self) -> None:
            super().handle_events()
            # Headers are complete as soon as there is a request that wasn't answered.
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()

        def on_response_complete(self) -> None:
            # uvicorn closes a connection on which nothing comes for so long.
            self._start_timer(self.timeout_keep_alive + seconds)
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self, delay: float) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(delay, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return HeaderTimeout
