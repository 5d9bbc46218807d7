"""Clients: good ones, which compare what they get, and all kinds of bad ones."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx

from scripts.soak_test.answers import BrokenAnswerError, streamed_answer, whole_answer
from scripts.soak_test.cases import Answer, Case
from scripts.soak_test.connections import RawConnection, request_bytes
from scripts.soak_test.malformed import CHAT, COMPLETIONS, Malformed
from scripts.soak_test.tally import Tally

# A stream that brings nothing for so long is stuck.
STUCK_SECONDS = 60.0

# The server's own limits: 10 s for headers, 20 s for a body.
CLOSED_SECONDS = 30.0

Behaviour = Callable[["Client"], Awaitable[None]]


@dataclass
class Client:
    """One client: ``slow`` has small buffers, and ``draw`` makes its choices."""

    port: int
    http: httpx.AsyncClient
    slow: httpx.AsyncClient
    cases: list[Case]
    malformed: list[Malformed]
    draw: random.Random
    tally: Tally


async def asks(client: Client) -> None:
    """Ask for a whole answer."""
    case = client.draw.choice(client.cases)
    response = await _post(client, case.path, case.body)
    _compare(client, case, whole_answer(response.json()))


async def streams(client: Client) -> None:
    """Read a stream as it comes."""
    await _read_stream(client, client.http, pause=0.0)


async def reads_slowly(client: Client) -> None:
    """Read a stream more slowly than it could come."""
    await _read_stream(client, client.slow, pause=0.005)


async def leaves_before_the_answer(client: Client) -> None:
    """Ask, for a stream or not, and leave some milliseconds later."""
    connection = await RawConnection.open(client.port)
    await connection.send(_endless(client, stream=client.draw.random() < 0.5))
    await asyncio.sleep(client.draw.choice((0, 0.001, 0.01, 0.05)) * client.draw.random())
    await connection.leave(client.draw)


async def leaves_in_the_stream(client: Client) -> None:
    """Read some events of a stream, and leave."""
    connection = await RawConnection.open(client.port)
    await connection.send(_endless(client, stream=True))
    async with asyncio.timeout(STUCK_SECONDS):
        if not await connection.read_events(client.draw.randint(1, 40)):
            client.tally.outcomes["refused: busy"] += 1  # the queue was full
    await connection.leave(client.draw)


async def leaves_in_the_body(client: Client) -> None:
    """Send a part of a request, and leave."""
    content = _endless(client, stream=True)
    connection = await RawConnection.open(client.port)
    await connection.send(content[: client.draw.randrange(len(content))])
    await asyncio.sleep(0.02 * client.draw.random())
    await connection.leave(client.draw)


async def stops_reading(client: Client) -> None:
    """Ask for a stream of large events, read nothing for a while, and leave."""
    connection = await RawConnection.open(client.port)
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await connection.send(_endless(client, stream=True, logprobs=20))
    await asyncio.sleep(0.5 * client.draw.random())
    await connection.leave(client.draw)


async def stays_half_open(client: Client) -> None:
    """Send nothing, or half of something, wait a while and leave."""
    connection = await RawConnection.open(client.port)
    await connection.send(client.draw.choice(_half_requests()))
    await asyncio.sleep(0.3 * client.draw.random())
    await connection.leave(client.draw)


async def sends_nonsense(client: Client) -> None:
    """Send what must be refused, and see that it is, in the API's form."""
    request = client.draw.choice(client.malformed)
    response = await client.http.request(
        request.method, request.path, content=request.content, headers=request.headers
    )
    client.tally.outcomes["refused"] += 1
    if response.status_code not in request.statuses:
        client.tally.breach(f"{request.name}: {response.status_code} {response.text[:200]}")
    elif request.reaches_api:
        _check_error(client, request, response)


async def outlasts_the_server(client: Client) -> None:
    """Hold half-open connections until the server closes them."""

    async def hold(content: bytes) -> None:
        connection = await RawConnection.open(client.port)
        await connection.send(content)
        begin = monotonic()
        try:
            async with asyncio.timeout(CLOSED_SECONDS):
                await connection.wait_until_closed()
        except TimeoutError:
            client.tally.breach(f"a connection with {content[:60]!r} is never closed")
        else:
            client.tally.outcomes["half-open connections that the server closed"] += 1
            if monotonic() - begin < 1:
                client.tally.breach(f"a connection with {content[:60]!r} is closed at once")
        await connection.leave(client.draw)

    await asyncio.gather(*(hold(content) for content in _half_requests()))


async def _read_stream(client: Client, http: httpx.AsyncClient, pause: float) -> None:
    case = client.draw.choice(client.cases)
    body = {**case.body, "stream": True, "stream_options": {"include_usage": True}}
    while True:
        async with http.stream("POST", case.path, json=body) as response:
            if not await _is_busy(client, response):
                lines = []
                async for line in response.aiter_lines():
                    lines.append(line)
                    if pause and line:
                        await asyncio.sleep(pause)
                break
    _compare(client, case, streamed_answer(lines))


async def _post(client: Client, path: str, body: dict[str, Any]) -> httpx.Response:
    while await _is_busy(client, response := await client.http.post(path, json=body)):
        pass
    return response


async def _is_busy(client: Client, response: httpx.Response) -> bool:
    """Whether the request must be sent again later, which this waits for."""
    if response.status_code == httpx.codes.OK:
        return False
    if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
        text = (await response.aread()).decode(errors="replace")
        raise BrokenAnswerError(f"{response.status_code} {text[:200]}")
    client.tally.outcomes["refused: busy"] += 1
    if "retry-after" not in response.headers:
        client.tally.breach("429 without Retry-After")
    await asyncio.sleep(0.05 + 0.2 * client.draw.random())
    return True


def _compare(client: Client, case: Case, answer: Answer) -> None:
    client.tally.outcomes["answers compared"] += 1
    client.tally.outcomes["tokens compared"] += answer.completion_tokens
    if not answer.equals(case.answer):
        client.tally.breach(f"{case.body}: {answer} instead of {case.answer}")


def _check_error(client: Client, request: Malformed, response: httpx.Response) -> None:
    error = response.json().get("error", {})
    if error.keys() != {"message", "type", "param", "code"} or not error["message"]:
        client.tally.breach(f"{request.name}: {response.text[:200]} isn't an error of the API")


def _endless(client: Client, *, stream: bool, logprobs: int | None = None) -> bytes:
    """A request that goes on until its client leaves."""
    body: dict[str, Any] = {
        "model": "model",
        "max_tokens": 100_000,
        "context_overflow": "slide",
        "ignore_eos": True,
        "stream": stream,
    }
    if logprobs is not None:
        return request_bytes(COMPLETIONS, {**body, "prompt": "a b c", "logprobs": logprobs})
    case = client.draw.choice(client.cases)
    if case.path == CHAT:
        return request_bytes(CHAT, {**body, "messages": case.body["messages"]})
    n = client.draw.randint(1, 2)
    return request_bytes(COMPLETIONS, {**body, "prompt": "a", "n": n})


def _half_requests() -> list[bytes]:
    body = {"model": "model", "prompt": "a"}
    return [
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n",
        request_bytes(COMPLETIONS, body, extra=100),
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
    ]
