"""What a request may ask for, and how large and how slow its body may be."""

import asyncio
import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A client that is still sending doesn't read an answer: a body that is too large is read to its
# end, and thrown away, unless it is longer than this.
_DISCARDED_BYTES = 64 << 20


class RequestLimits(BaseModel):
    """Limits of every request, whoever makes it; limits of single keys come on top.

    ``prompt_tokens`` and ``new_tokens`` of None leave it at the engine's capacity. ``schema_bytes``
    is for a JSON schema, a regular expression or a grammar. ``header_seconds`` and
    ``body_seconds`` are for receiving them, ``request_seconds`` for all of a request. A client that
    reads nothing of an answer for ``stalled_seconds`` is disconnected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    header_bytes: PositiveInt = 16 << 10
    header_seconds: PositiveFloat = 10.0
    body_bytes: PositiveInt = 2 << 20
    body_seconds: PositiveFloat = 20.0
    request_seconds: PositiveFloat = 600.0
    stalled_seconds: PositiveFloat = 30.0
    prompt_tokens: PositiveInt | None = None
    new_tokens: PositiveInt | None = None
    choices: PositiveInt = 16
    stop_strings: PositiveInt = 16
    stop_characters: PositiveInt = 256
    schema_bytes: PositiveInt = 64 << 10
    logit_bias_entries: PositiveInt = 1024


class BodyLimits:
    """ASGI middleware: the application is called with a whole body, or not at all.

    Headers that are too large are answered with 431, a body that is too large with 413, one that
    takes too long with 408. Memory holds at most ``body_bytes`` of each request.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope["headers"])
            body = await self._read(dict(scope["headers"]), receive)
        except _RefusedError as refusal:
            await _refuse(send, refusal)
        except _DisconnectedError:
            pass
        else:
            await self._app(scope, _Replayed(body, receive), send)

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        # uvicorn limits what it keeps of headers that aren't complete; these came all at once.
        most = self._limits.header_bytes
        if sum(len(name) + len(value) for name, value in headers) > most:
            message = f"The request's headers are larger than {most:,} bytes: send fewer."
            raise _RefusedError(431, "headers_too_large", message)

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most, seconds = self._limits.body_bytes, self._limits.body_seconds
        worth_reading = max(most, _DISCARDED_BYTES)
        announced = int(headers.get(b"content-length", b"0"))  # the server checked the number
        body, size, has_more = bytearray(), 0, True
        if announced > worth_reading:
            size = announced
        try:
            async with asyncio.timeout(seconds):
                while has_more and size <= worth_reading:
                    part, has_more = await _next_part(receive)
                    size += len(part)
                    if size <= most:
                        body += part
        except TimeoutError:
            if size <= most:
                message = f"The request's body took longer than {seconds:g} s: send it again."
                raise _RefusedError(408, "body_timeout", message) from None
        if size > most:
            message = f"The request's body is larger than {most:,} bytes: send less text."
            raise _RefusedError(413, "body_too_large", message)
        return bytes(body)


async def _next_part(receive: Receive) -> tuple[bytes, bool]:
    """A part of the body, and whether more follows."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _DisconnectedError
    return message.get("body", b""), message.get("more_body", False)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _DisconnectedError(Exception):
    pass


class _Replayed:
    """The ``receive`` of a request whose body was read: first the body, then what comes after."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _refuse(send: Send, refusal: _RefusedError) -> None:
    """Answer in the shape of OpenAI's errors, and close the connection: its body isn't read."""
    error = {
        "message": str(refusal),
        "type": "invalid_request_error",
        "param": None,
        "code": refusal.code,
    }
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
