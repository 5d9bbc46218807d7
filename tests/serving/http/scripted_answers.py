"""Answers that a healthy server with a tiny model never gives, in front of the real server."""

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ScriptedAnswers:
    """Passes requests on to ``app``, but answers completions from ``script`` while it has any.

    ``requests`` are the bodies of all completions, and ``keys`` their Authorization headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.script = deque[ASGIApp]()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/completions"):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body()
        self.requests.append(json.loads(body))
        self.keys.append(request.headers.get("authorization"))
        was_read = False

        async def receive_again() -> Message:
            nonlocal was_read
            if was_read:
                return await receive()
            was_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        answer = self.script.popleft() if self.script else self.app
        await answer(scope, receive_again, send)


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse(error_document(message), status, headers)


def error_document(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def event(document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def piece(text: str, finish_reason: str | None = None) -> bytes:
    """The event of a piece of a chat's answer."""
    delta = {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def ending(tokens: int) -> bytes:
    """The events that end a stream."""
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7}
    return piece("", "stop") + event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def stream(parts: Iterable[bytes]) -> StreamingResponse:
    return StreamingResponse(parts, media_type="text/event-stream")
