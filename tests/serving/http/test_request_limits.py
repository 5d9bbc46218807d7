"""Bodies and headers that are too large or too slow, sent to uvicorn over real connections."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serving.http.listening import check_listening
from serving.http.request_limits import BodyLimits, RequestLimits
from tests.serving.http.live_server import serving_at

LIMITS = RequestLimits(body_bytes=1000, body_seconds=0.4, header_bytes=4096, header_seconds=0.4)
CALLS: list[int] = []


async def length(request: Request) -> PlainTextResponse:
    body = await request.body()
    CALLS.append(len(body))
    return PlainTextResponse(str(len(body)))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    routes = [Route("/", length, methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(BodyLimits, limits=LIMITS)])
    listening = check_listening("127.0.0.1", 0, keys=())
    options = listening.uvicorn_options(LIMITS) | {"timeout_keep_alive": 1}
    with serving_at(app, options) as port:
        yield port


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def chunks(count: int, size: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * size


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(4096):
        received += part
    return received


def test_bodies_up_to_the_limit_arrive(port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    with httpx.Client() as client:
        assert client.get(url).text == "0"
        assert client.post(url, content=b"x" * 1000).text == "1000"
        assert client.post(url, content=chunks(10, 100)).text == "1000"


@pytest.mark.parametrize("size", [1001, 10_000_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_larger_bodies_are_413_and_the_application_is_not_called(
    port: int, size: int, is_chunked: bool
) -> None:
    content = chunks(size // 77 + 1, 77) if is_chunked else b"x" * size
    answer = httpx.post(f"http://127.0.0.1:{port}/", content=content, timeout=10)
    assert answer.status_code == 413
    assert answer.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": None,
        "code": "body_too_large",
    }
    assert "larger than 1,000 bytes" in answer.json()["error"]["message"]
    assert CALLS == []
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "0"


def test_an_announced_huge_body_is_refused_before_it_comes(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_slow_body_is_408(port: int, drip: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + drip)
        begin = time.monotonic()
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "body_timeout"
    assert 0.3 < time.monotonic() - begin < 5
    assert CALLS == []


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
@pytest.mark.parametrize("is_first", [True, False])
def test_headers_that_do_not_come_close_the_connection(
    port: int, start: bytes, is_first: bool
) -> None:
    with connect(port) as connection:
        if not is_first:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(b"\r\n\r\n0"):
                received += connection.recv(4096)
        connection.sendall(start)
        begin = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - begin < 5


def test_dripping_headers_close_the_connection(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        begin = time.monotonic()
        connection.settimeout(0.05)
        while True:
            try:
                connection.sendall(b"A: b\r\n")
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                assert time.monotonic() - begin < 5
            except ConnectionError:
                break


@pytest.mark.parametrize("sizes", [(5000,), (3000, 3000)])
def test_large_headers_are_refused(port: int, sizes: tuple[int, ...]) -> None:
    """With 431, or 400: which one depends on the pieces that they arrive in."""
    with connect(port) as connection:
        # At once: what comes after the answer would reset the connection, and the answer be lost.
        headers = b"".join(b"A: " + b"x" * size + b"\r\n" for size in sizes)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        assert int(read_all(connection).split()[1]) in {431, 400}
    assert CALLS == []
    assert httpx.get(f"http://127.0.0.1:{port}/", headers={"a": "x" * 3000}).text == "0"


def test_headers_without_end_are_refused(port: int) -> None:
    with connect(port) as connection:
        with suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"A: " + b"x" * 1000)
        with suppress(ConnectionError):
            assert read_all(connection).startswith((b"HTTP/1.1 400 ", b""))
    assert CALLS == []


def test_a_client_that_leaves_calls_nothing(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nxx")
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "0"
    assert CALLS == [0]
