"""Requests that must be refused, each with one of these statuses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_PLAIN = {"model": "model", "prompt": "a", "max_tokens": 1}
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Malformed:
    """A request, and the statuses that it may be answered with.

    Unless it ``reaches_api``, the answer needn't be an error of the API.
    """

    name: str
    content: bytes
    path: str = COMPLETIONS
    method: str = "POST"
    statuses: tuple[int, ...] = (400,)
    headers: dict[str, str] = field(default_factory=lambda: dict(_JSON))
    reaches_api: bool = True


def malformed_requests() -> list[Malformed]:
    """All of them."""
    return [*_broken_texts(), *_wrong_values(), *_wrong_places(), *_too_large()]


def _broken_texts() -> Iterator[Malformed]:
    whole = json.dumps(_PLAIN).encode()
    yield from (Malformed("cut short", whole[:length]) for length in (0, 1, 7, len(whole) - 1))
    yield Malformed("bad UTF-8", whole.replace(b'"a"', b'"\xff\xc3"'))
    yield Malformed("half a surrogate pair", whole.replace(b'"a"', b'"\\ud800"'))
    yield Malformed("zero bytes", bytes(100))
    yield Malformed("deeply nested", b"[" * 100_000)
    yield Malformed("no object", b"[1]")
    yield Malformed("a number without end", b'{"seed": ' + b"9" * 10_000 + b"}")
    yield Malformed("a form", b"prompt=a", headers={"content-type": "text/plain"})


def _wrong_values() -> Iterator[Malformed]:
    changes: tuple[dict[str, Any], ...] = (
        {"prompt": {"a": 1}},
        {"prompt": []},
        {"prompt": [31, 10**9]},
        {"prompt": "a" * 5000},
        {"max_tokens": "5"},
        {"max_tokens": 0},
        {"n": 10**6},
        {"temperature": float("nan")},
        {"temperature": -1},
        {"logit_bias": {"x": 1}},
        {"logprobs": 99},
        {"stop": ["a"] * 17},
        {"stop": ""},
        {"stream": 1},
        {"unknown": 1},
    )
    for change in changes:
        content = json.dumps(_PLAIN | change).encode()
        yield Malformed(f"wrong value of {next(iter(change))}", content)
    for messages in ([], [{"role": "nobody", "content": "a"}], [{"role": "user"}], "a"):
        content = json.dumps({"model": "model", "messages": messages}).encode()
        yield Malformed("wrong messages", content, CHAT)
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "model", "messages": messages, "response_format": schema}
    yield Malformed("wrong schema", json.dumps(body).encode(), CHAT)


def _wrong_places() -> Iterator[Malformed]:
    content = json.dumps(_PLAIN).encode()
    yield Malformed("no such path", content, "/v1/nothing", statuses=(404, 405))
    yield Malformed("wrong method", b"", COMPLETIONS, "GET", (405,))
    other = json.dumps(_PLAIN | {"model": "other"}).encode()
    yield Malformed("no such model", other, statuses=(404,))


def _too_large() -> Iterator[Malformed]:
    yield Malformed("10 MB", b'{"prompt": "' + b"a" * 10_000_000, statuses=(413,))
    headers = {"a": "x" * 20_000}
    yield Malformed("headers", b"{}", statuses=(400, 431), headers=headers, reaches_api=False)
