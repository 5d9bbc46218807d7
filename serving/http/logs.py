"""Structured logs: a line of JSON each, which never has a prompt, an answer or a key in it.

What a request may log is what RequestLog has room for. Of exceptions the types and the places in
the code are logged, not the messages: these may quote what a client sent.
"""

import json
import logging
import re
import sys
import traceback
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from serving.http.keys import PREFIX

_REQUESTS = logging.getLogger("serving.http.requests")
_SECRET = re.compile(rf"{PREFIX}[\w-]+|Bearer\s+\S+", re.IGNORECASE)
_LOGGERS = ("serving", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class RequestLog:
    """All that is logged of a request that has ended.

    ``route`` is the template that matched ("/v1/models/{model}"), not what the client sent. ``key``
    is a key's name, ``model`` one of the names that this server has. ``error`` is an error's code
    ("rate_limit_exceeded"). Times are in seconds: ``queue_seconds`` before the prompt was begun,
    ``first_token_seconds`` from the arrival to the first token.
    """

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    key: str | None = None
    model: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    new_tokens: int | None = None
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    disconnected: bool = False


def log_request(entry: RequestLog) -> None:
    """Log a request that has ended."""
    level = logging.ERROR if entry.status >= 500 else logging.INFO
    _REQUESTS.log(level, "request", extra={"request": entry})


def configure_logs(level: str = "INFO", stream: TextIO = sys.stderr) -> None:
    """Send the logs of this package and of uvicorn, which must leave its own as they are, there.

    Those of other packages go nowhere: what they say isn't known to be harmless.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # Without any handler Python prints their warnings: asyncio's can quote what a client sent.
    logging.basicConfig(handlers=[logging.NullHandler()])


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger and message, then the request or the exception, if it has one."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _SECRET.sub("[key]", record.getMessage()),
        }
        request = getattr(record, "request", None)
        if isinstance(request, RequestLog):
            fields = asdict(request).items()
            entry |= {name: _rounded(value) for name, value in fields if value is not None}
        if record.exc_info and record.exc_info[1] is not None:
            entry["exceptions"] = _exceptions(record.exc_info[1])
        return json.dumps(entry)


def _exceptions(error: BaseException) -> list[dict[str, Any]]:
    """An exception and those that it came from, without their messages."""
    described: list[dict[str, Any]] = []
    current: BaseException | None = error
    while current is not None and len(described) < 8:
        frames = traceback.extract_tb(current.__traceback__)
        described.append(
            {
                "type": f"{type(current).__module__}.{type(current).__qualname__}",
                "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
            }
        )
        current = current.__cause__ or current.__context__
    return described


def _rounded(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value
