"""Clients that leave or don't read, workers that die, and a server that is told to end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.http.request_limits import RequestLimits
from tests.serving.http.running import Running, running, until

ENDLESS: dict[str, Any] = {
    "model": "tiny",
    "prompt": "hello",
    "max_tokens": 1_000_000,
    "context_overflow": "slide",
    "ignore_eos": True,
}


def is_idle(server: Running) -> bool:
    """Whether nothing runs, in the server and in the worker."""
    (model,) = server.state.models
    load = model.worker.load
    return not (model.worker.in_flight or load.decoding or load.prefilling or load.waiting)


def metric(server: Running, name: str) -> float:
    with server.http as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_leaves_a_stream_frees_its_slots(tiny: Running, n: int) -> None:
    before = metric(tiny, "serve_llm_disconnects_total")
    body = {**ENDLESS, "stream": True, "n": n}
    with tiny.http as client, client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        assert not is_idle(tiny)
    until(lambda: is_idle(tiny))
    until(lambda: metric(tiny, "serve_llm_disconnects_total") == before + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_is_forgotten(tiny: Running, stream: bool) -> None:
    (model,) = tiny.state.models
    taking_both_slots = {**ENDLESS, "stream": True, "n": 2}
    with (
        tiny.http as client,
        client.stream("POST", "/v1/completions", json=taking_both_slots) as first,
    ):
        lines = first.iter_lines()
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={**ENDLESS, "stream": stream}, timeout=0.3)
        until(lambda: model.worker.in_flight == 2)
        next(lines)
    until(lambda: is_idle(tiny))


def test_who_does_not_read_holds_up_nobody_and_is_disconnected(tiny_bundle: Path) -> None:
    with running({"tiny": tiny_bundle}, limits=RequestLimits(stalled_seconds=1)) as server:
        (model,) = server.state.models
        with _not_reading(server):
            until(lambda: model.worker.load.decoding == 1)
            answer = server.post("/v1/completions", model="tiny", prompt="hi", max_tokens=5)
            assert answer.status_code == 200
            assert model.worker.load.decoding == 1
            until(lambda: is_idle(server))


@contextmanager
def _not_reading(server: Running) -> Iterator[None]:
    """A request for a stream whose connection stays open and isn't read."""
    # Chunks are large, so that the kernel's buffers are soon full.
    body = json.dumps({**ENDLESS, "stream": True, "logprobs": 20}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        yield


def test_a_worker_that_dies_is_an_error_and_is_replaced(tiny_bundle: Path) -> None:
    with running({"tiny": tiny_bundle}) as server, server.http as client:
        (model,) = server.state.models
        with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert model.worker.process_id is not None
            os.kill(model.worker.process_id, signal.SIGKILL)
            *_, last = (line for line in lines if line)
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "worker_lost")

        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        early = client.post("/v1/completions", json={"model": "tiny", "prompt": "hi"})
        assert early.status_code == 503
        assert early.json()["error"]["code"] == "model_loading"
        assert int(early.headers["retry-after"]) >= 1

        until(lambda: client.get("/ready").status_code == 200)
        late = client.post("/v1/completions", json={"model": "tiny", "prompt": "hi"})
        assert late.status_code == 200
        assert metric(server, "serve_llm_worker_restarts_total") == 1


@pytest.fixture
def process(tiny_bundle: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """serve-llm http as it is started from a shell, ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from serving.cli import main; main()", "http"]
    options = ["--port", str(port), "--threads", "1", "--drain-seconds", "20"]
    with subprocess.Popen(
        [*command, f"tiny={tiny_bundle}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"tiny: http://127.0.0.1:{port}/v1\n"
        url = f"http://127.0.0.1:{port}"
        until(lambda: _status(f"{url}/ready") == 200)
        yield process, url
        process.kill()


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


def test_at_sigterm_running_streams_end_and_no_new_ones_begin(
    process: tuple["subprocess.Popen[str]", str],
) -> None:
    server, url = process
    # Greedy: a sampled end token has no text, and so no event.
    body = {**ENDLESS, "max_tokens": 4000, "temperature": 0, "stream": True}
    events: list[str] = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as stream:
        lines = (line for line in stream.iter_lines() if line)
        events.append(next(lines))
        server.send_signal(signal.SIGTERM)
        until(lambda: _status(f"{url}/ready") == 503)
        refused = httpx.post(f"{url}/v1/completions", json={**ENDLESS, "max_tokens": 1})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert int(refused.headers["retry-after"]) >= 1
        assert _status(f"{url}/health") == 200
        events += lines
    assert len(events) == 4001
    assert events[-1] == "data: [DONE]"
    assert server.wait(10) == 0


def test_a_second_signal_ends_streams_with_an_error(
    process: tuple["subprocess.Popen[str]", str],
) -> None:
    server, url = process
    with httpx.stream(
        "POST", f"{url}/v1/completions", json={**ENDLESS, "stream": True}, timeout=30
    ) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        server.send_signal(signal.SIGINT)
        until(lambda: _status(f"{url}/ready") == 503)
        server.send_signal(signal.SIGINT)
        *_, last = lines
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert server.wait(10) == 0


def test_a_bundle_that_can_not_be_opened_ends_the_server(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", "from serving.cli import main; main()", "http"]
    options = ["--port", "0", "--capacity", "5000"]
    ended = subprocess.run(
        [*command, str(tiny_bundle), *options], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "Error: capacity is 5000, but this model takes from 1 to 4096" in ended.stderr


def test_several_bundles_are_served_beside_each_other(tiny_bundle: Path) -> None:
    with running({"a": tiny_bundle, "b": tiny_bundle}) as server:
        answers = {}

        def ask(model: str) -> None:
            body = {"model": model, "prompt": "hello", "max_tokens": 20, "temperature": 0}
            answers[model] = server.post("/v1/completions", **body).json()

        threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answers[name]["model"] for name in "ab"] == ["a", "b"]
        assert answers["a"]["choices"] == answers["b"]["choices"]
        assert {model.id for model in server.openai.models.list().data} == {"a", "b"}
