"""Running the application until a signal ends it: running requests are finished first."""

import asyncio
from time import monotonic
from types import FrameType

import uvicorn

from serving.http.app import create_app
from serving.http.listening import Listening
from serving.http.state import ServerState

# After all requests have ended, connections close by themselves.
CLOSING_SECONDS = 5


class DrainingServer(uvicorn.Server):
    """Finishes what runs before it ends.

    From the first signal on, new requests to the API get 503 and running ones have
    ``drain_seconds`` to end. At the second signal, or after that time, they end with an error.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, drain_seconds: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_seconds = drain_seconds
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle SIGINT and SIGTERM."""
        if self._state.is_draining:
            self._deadline = 0.0
            return
        self._deadline = monotonic() + self._drain_seconds
        self._state.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether it is time to end."""
        if self._state.failure is not None:
            self.should_exit = True
        elif self._state.is_draining and self._has_drained() and not self.should_exit:
            await self._state.models.close()  # streams that still run end with an error
            self.should_exit = True
        return await super().on_tick(counter)

    def _has_drained(self) -> bool:
        return not self._state.running or monotonic() >= self._deadline


def serve(state: ServerState, listening: Listening, drain_seconds: float) -> None:
    """Serve until a signal comes; raises UserError if a model can't be opened."""
    config = uvicorn.Config(
        create_app(state),
        timeout_graceful_shutdown=CLOSING_SECONDS,
        **listening.uvicorn_options(state.limits),
    )
    asyncio.run(DrainingServer(config, state, drain_seconds).serve())
    if state.failure is not None:
        raise state.failure
