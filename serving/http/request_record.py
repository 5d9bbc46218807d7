"""What becomes known of a request on its way, for the log and the metrics."""

import uuid
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

from starlette.requests import Request


@dataclass(slots=True)
class RequestRecord:
    """One request; times are of perf_counter. ``key`` is the name of the API key it came with.

    ``headers`` are for the answer.
    """

    method: str
    route: str = "other"
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    begin: float = field(default_factory=perf_counter)
    first_token: float | None = None
    status: int = 0
    key: str | None = None
    model: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    disconnected: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def record_of(request: Request) -> RequestRecord:
    """The record that observing.py gave a request."""
    return cast(RequestRecord, request.state.record)
