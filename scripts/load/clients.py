"""Clients of a server: each sends its next request when the last one has ended."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx

from scripts.load.timing import Timeline


@dataclass(frozen=True)
class Endpoint:
    """Where a server generates, and what a request's body is.

    ``brings_tokens`` says whether an event does, and ``total`` is the number of tokens that the
    last one names (None: it isn't the last one).
    """

    url: str
    body: Callable[[list[int], int], dict[str, Any]]
    brings_tokens: Callable[[dict[str, Any]], bool]
    total: Callable[[dict[str, Any]], int | None]


def run_clients(
    endpoint: Endpoint, streams: int, prompts: list[list[int]], new_tokens: int
) -> list[Timeline]:
    """Serve all prompts with ``streams`` clients; raises RuntimeError if tokens are missing."""
    timelines: list[Timeline] = []
    waiting = deque(prompts)

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            timeline = await _generate(http, endpoint, waiting.popleft(), new_tokens)
            if timeline.tokens != new_tokens:
                raise RuntimeError(f"{timeline.tokens} tokens instead of {new_tokens}")
            timelines.append(timeline)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=600) as http:
            await asyncio.gather(*(client(http) for _ in range(streams)))

    asyncio.run(run())
    return timelines


async def _generate(
    http: httpx.AsyncClient, endpoint: Endpoint, prompt: list[int], new_tokens: int
) -> Timeline:
    timeline = Timeline(perf_counter())
    body = endpoint.body(prompt, new_tokens)
    async with http.stream("POST", endpoint.url, json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise RuntimeError(f"{response.status_code}: {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if endpoint.brings_tokens(event):
                timeline.times.append(perf_counter())
            timeline.tokens = endpoint.total(event) or timeline.tokens
    return timeline
