"""What a request may ask for, and how large and how slow its body may be."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A client that is still sending doesn't read an answer: a body that is too large is read to its
# end, and thrown away, unless it is longer than this.
_DISCARDED_BYTES = 64 << 20


class RequestLimits(BaseModel):
    """Limits of every request, whoever makes it; limits of single keys come on top.

    ``prompt_tokens`` and ``new_tokens`` of None leave it at the engine's capacity. ``schema_bytes``
    is for a JSON schema, a regular expression or a grammar. ``header_seconds`` and
    ``body_seconds`` are for receiving them, ``request_seconds`` for all of a request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    header_bytes: PositiveInt = 16 << 10
    header_seconds: PositiveFloat = 10.0
    body_bytes: PositiveInt = 2 << 20
    body_seconds: PositiveFloat = 20.0
    request_seconds: PositiveFloat = 600.0
    prompt_tokens: PositiveInt | None = None
    new_tokens: PositiveInt | None = None
    choices: PositiveInt = 16
    stop_strings: PositiveInt = 16
    stop_characters: PositiveInt = 256
    schema_bytes: PositiveInt = 64 << 10
    logit_bias_entries: PositiveInt = 1024


class BodyLimits:
    """ASGI middleware: the application is called with a whole body, or not at all.

    A body that is too large is answered with 413, one that takes too long with 408. Memory holds at
    most ``body_bytes`` of each request.
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
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._read(dict(scope["headers"]), receive)
        except TimeoutError:
            await _refuse(send, _too_slow(self._limits.body_seconds))
            return
        except _TooLargeError:
            await _refuse(send, _too_large(self._limits.body_bytes))
            return
        except _DisconnectedError:
            return
        await self._app(scope, _Replayed(body, receive), send)

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        length = headers.get(b"content-length", b"0")  # the server has checked that it is a number
        if int(length) > max(most, _DISCARDED_BYTES):
            raise _TooLargeError
        body, size = bytearray(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            part: bytes = message.get("body", b"")
            size += len(part)
            if size <= most:
                body += part
            else:
                body.clear()
            if size > max(most, _DISCARDED_BYTES):
                raise _TooLargeError
            if not message.get("more_body", False):
                break
        if size > most:
            raise _TooLargeError
        return bytes(body)


class _TooLargeError(Exception):
    pass


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


@dataclass(frozen=True)
class _Refusal:
    status: int
    code: str
    message: str


def _too_large(most: int) -> _Refusal:
    message = f"The request's body is larger than {most:,} bytes: send less text."
    return _Refusal(413, "body_too_large", message)


def _too_slow(seconds: float) -> _Refusal:
    message = f"The request's body did not arrive within {seconds:g} seconds: send it again."
    return _Refusal(408, "body_timeout", message)


async def _refuse(send: Send, refusal: _Refusal) -> None:
    """Answer in the shape of OpenAI's errors, and close the connection: its body isn't read."""
    error = {
        "message": refusal.message,
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
