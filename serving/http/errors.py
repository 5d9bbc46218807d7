"""Errors as OpenAI's API writes them, and which of them an exception becomes."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.errors import EngineError, UserError
from serving.request_queue import QueueFullError
from serving.scheduler import DeadlineError
from serving.worker.client import SlowReaderError, WorkerLostError

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "timeout_error",
    "server_error",
]

RETRY_SECONDS = 1

# What OpenAI's API has and this server hasn't.
_NOT_SUPPORTED = (
    "audio",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
)


class ApiError(Exception):
    """An answer with an error: ``param`` names what it is about, ``code`` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: ErrorType = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def document(self) -> dict[str, Any]:
        """The body, in JSON's types."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def response(self) -> Response:
        """The answer, in ASCII: what it quotes of a request may be no valid Unicode."""
        body = json.dumps(self.document)
        return Response(body, self.status, self.headers, media_type="application/json")


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A request that can't be answered as it is, and which of its parameters is why."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A parameter that OpenAI's API has and this server hasn't."""
    return invalid(param, message, "unsupported_parameter")


def unavailable(message: str, code: str, retry_after: int = RETRY_SECONDS) -> ApiError:
    """Nothing is wrong with the request; it should be sent again later."""
    headers = {"retry-after": str(retry_after)}
    return ApiError(503, message, kind="server_error", code=code, headers=headers)


def from_user_error(error: UserError, param: str | None = None) -> ApiError:
    """What an error of the worker is to a client; ``param`` is what a refusal is about."""
    message = str(error)
    match error:
        case QueueFullError():
            headers = {"retry-after": str(RETRY_SECONDS)}
            return ApiError(
                429, message, kind="rate_limit_error", code="queue_full", headers=headers
            )
        case DeadlineError():
            return ApiError(504, message, kind="timeout_error", code="deadline_exceeded")
        case SlowReaderError():
            return ApiError(408, message, kind="timeout_error", code="slow_reader")
        case WorkerLostError():
            return ApiError(500, message, kind="server_error", code="worker_lost")
        case EngineError():
            return ApiError(500, message, kind="server_error", code="engine_failed")
    return invalid(param, message)


async def answer_api_error(request: Request, error: Exception) -> Response:
    """Handle an ApiError."""
    assert isinstance(error, ApiError)
    request.state.record.error = error.code or error.kind
    return error.response


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """Handle a request that doesn't follow its schema: 400, and the first thing that is wrong."""
    assert isinstance(error, RequestValidationError)
    return await answer_api_error(request, _from_validation(error))


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Handle what Starlette and FastAPI refuse: unknown paths, methods, malformed JSON."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"Invalid URL ({request.method} {request.url.path})",
        405: f"Not allowed to {request.method} on {request.url.path}.",
        400: "We could not parse the JSON body of your request.",
    }
    message = messages.get(error.status_code, str(error.detail))
    return await answer_api_error(
        request, ApiError(error.status_code, message, headers=error.headers)
    )


async def answer_unexpected_error(request: Request, _: Exception) -> Response:
    """Handle an error of this program; the log has it."""
    message = "The server had an error while processing your request. Sorry about that!"
    return await answer_api_error(request, ApiError(500, message, kind="server_error"))


def _from_validation(error: RequestValidationError) -> ApiError:
    first = min(error.errors(), key=_vagueness)
    kind, location = first["type"], first["loc"][1:]
    if kind == "json_invalid":
        return invalid(None, "We could not parse the JSON body of your request.")
    param = _path(error.body, location, is_missing=kind == "missing")
    if param is None:
        return invalid(
            None, "The request's body must be a JSON object, with content-type application/json."
        )
    if kind.startswith("union_tag_"):  # the member that says which kind of object it is
        member = first["ctx"]["discriminator"].strip("'")
        param, kind = f"{param}.{member}", kind.removeprefix("union_tag_")
    match kind:
        case "extra_forbidden" if param in _NOT_SUPPORTED:
            return unsupported(param, f"Unsupported parameter: '{param}' is not supported here.")
        case "extra_forbidden":
            message = f"Unrecognized request argument supplied: {param}"
            return invalid(param, message, "unknown_parameter")
        case "missing" | "not_found":
            message = f"Missing required parameter: '{param}'."
            return invalid(param, message, "missing_required_parameter")
    return invalid(param, f"Invalid value for '{param}': {first['msg']}.", "invalid_value")


def _vagueness(error: Any) -> int:
    """Of a union every member complains: the more general a complaint, the less it says."""
    kind = error["type"]
    if kind == "extra_forbidden":
        return 3
    if kind.endswith("_type"):
        return 2
    return 0 if kind == "literal_error" else 1


def _path(body: Any, location: tuple[int | str, ...], is_missing: bool) -> str | None:
    """Where in the body something is wrong, as in messages[0].content.

    The location has names of types too, of which the body knows nothing.
    """
    path, value = "", body
    for at, part in enumerate(location):
        is_last = at == len(location) - 1
        if isinstance(part, int) and isinstance(value, list):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or (is_last and is_missing)):
            path, value = f"{path}.{part}" if path else str(part), value.get(part)
    return path or None
