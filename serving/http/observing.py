"""ASGI middleware around everything: counts, times and logs requests, and ends with them."""

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.errors import unavailable
from serving.http.logs import RequestLog, log_request
from serving.http.request_record import RequestRecord
from serving.http.state import ServerState

# Probes come every few seconds: they aren't logged.
_PROBES = ("/health", "/ready", "/metrics")

# What a server that ends doesn't begin any more.
_API = ("/v1/", "/models/")


class Observing:
    """Gives each request its record, and refuses those to the API while the server ends."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(scope["method"])
        scope.setdefault("state", {})["record"] = record
        is_api = scope["path"].startswith(_API)

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                request_id = (b"x-request-id", record.request_id.encode())
                message = {**message, "headers": [*message["headers"], request_id]}
            await send(message)

        self._state.running += is_api
        try:
            if is_api and self._state.is_draining:
                record.error = "shutting_down"
                answer = unavailable("The server is shutting down: try another one.", record.error)
                await answer.response(scope, receive, observed_send)
            else:
                await self._app(scope, receive, observed_send)
        except Exception:
            # The application answers it further out, where this no longer sees it.
            record.status, record.error = record.status or 500, "server_error"
            raise
        finally:
            self._state.running -= is_api
            self._finish(scope, record)

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        record.route = getattr(scope.get("route"), "path", record.route)
        self._state.metrics.record_request(record)
        if record.route not in _PROBES:
            log_request(_log_entry(record))


def _log_entry(record: RequestRecord) -> RequestLog:
    first = record.first_token
    return RequestLog(
        request_id=record.request_id,
        method=record.method,
        route=record.route,
        status=record.status,
        seconds=perf_counter() - record.begin,
        key=record.key,
        model=record.model,
        error=record.error,
        finish_reason=record.finish_reason,
        prompt_tokens=record.prompt_tokens or None,
        cached_tokens=record.cached_tokens or None,
        new_tokens=record.new_tokens or None,
        first_token_seconds=None if first is None else first - record.begin,
        disconnected=record.disconnected,
    )
