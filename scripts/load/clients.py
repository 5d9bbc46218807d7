"""Clients of a server: each sends its next request when the last one has ended."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

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

    async def client() -> None:
        while waiting:
            timeline = await _generate(endpoint, waiting.popleft(), new_tokens)
            if timeline.tokens != new_tokens:
                raise RuntimeError(f"{timeline.tokens} tokens instead of {new_tokens}")
            timelines.append(timeline)

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(streams)))

    asyncio.run(run())
    return timelines


async def _generate(endpoint: Endpoint, prompt: list[int], new_tokens: int) -> Timeline:
    """Ask once. By hand, for a client that takes much time would count as the server's."""
    address = urlsplit(endpoint.url)
    body = json.dumps(endpoint.body(prompt, new_tokens)).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    timeline = Timeline(perf_counter())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r}: {await reader.read()!r}")
        # Headers and the lengths of chunks are lines too, but none that begins like this.
        while line := await reader.readline():
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                event = json.loads(line.removeprefix(b"data: "))
                if endpoint.brings_tokens(event):
                    timeline.times.append(perf_counter())
                timeline.tokens = endpoint.total(event) or timeline.tokens
    finally:
        writer.close()
    return timeline
