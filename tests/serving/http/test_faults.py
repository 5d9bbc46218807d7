"""Faults under load: workers that are killed or hang, a full disk, and the end of the server."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.soak_test.server import running_server
from serving.http.request_limits import RequestLimits
from tests.serving.http.running import Running, running, until

BODY: dict[str, Any] = {"prompt": "hello", "ignore_eos": True, "temperature": 0}
ENDLESS = {**BODY, "max_tokens": 1_000_000, "context_overflow": "slide"}
PATH = "/v1/completions"


def answer(url: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status, and the end of a stream or the code of an error, wherever that is."""
    with httpx.stream("POST", f"{url}{PATH}", json=body, timeout=30) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    if lines[-1] == "[DONE]":
        return response.status_code, "[DONE]"
    document = json.loads(lines[-1])
    return response.status_code, document["error"]["code"] if "error" in document else "answered"


@contextmanager
def under_load(url: str, bodies: list[dict[str, Any]]) -> Iterator[list["Future[tuple[int, str]]"]]:
    """Requests, each on a thread of its own."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        yield [pool.submit(answer, url, body) for body in bodies]


def signal_worker(server: Running, number: int) -> None:
    (model,) = server.state.models
    assert model.worker.process_id is not None
    os.kill(model.worker.process_id, number)


def test_when_a_worker_is_killed_all_requests_end_and_later_ones_are_answered(
    tiny_bundle: Path,
) -> None:
    # Two of each kind: some have a slot, the others wait for one.
    bodies = [{**ENDLESS, "model": "tiny", "stream": stream} for stream in [True, False] * 3]
    with running({"tiny": tiny_bundle}) as server:
        (model,) = server.state.models
        with under_load(server.url, bodies) as answers:
            until(lambda: model.worker.load.decoding == 2 and model.worker.load.waiting == 4)
            signal_worker(server, signal.SIGKILL)
            results = [each.result() for each in answers]
        assert {code for _, code in results} == {"worker_lost"}
        # A stream that has begun can't have another status any more.
        assert {status for status, _ in results} <= {200, 500}
        assert [status for status, _ in results[1::2]] == [500] * 3
        early = server.post(PATH, **BODY, model="tiny")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "model_loading")
        until(lambda: server.state.is_ready)
        assert server.post(PATH, **BODY, model="tiny").status_code == 200
        assert model.worker.in_flight == 0


def test_when_a_worker_hangs_requests_end_and_it_is_replaced(tiny_bundle: Path) -> None:
    limits = RequestLimits(request_seconds=1)
    with running({"tiny": tiny_bundle}, limits=limits, silent_seconds=3) as server:
        (model,) = server.state.models
        hung = model.worker.process_id
        signal_worker(server, signal.SIGSTOP)
        bodies = [{**ENDLESS, "model": "tiny", "stream": stream} for stream in (True, False)]
        with under_load(server.url, bodies) as answers:
            with server.http as client:
                assert client.get("/health").status_code == 200
            assert [each.result() for each in answers] == [(504, "deadline_exceeded")] * 2
        # Nobody waits any more, but the worker hasn't said that it knows.
        until(lambda: model.worker.restarts == 1 and server.state.is_ready)
        assert model.worker.process_id != hung
        assert server.post(PATH, **BODY, model="tiny").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_under_the_log_does_not_stop_the_server(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, Path("/dev/full"), slots=2) as server:
        bodies = [{**BODY, "model": "model", "stream": stream} for stream in [True, False] * 2]
        with under_load(server.url, bodies) as answers:
            results = [each.result() for each in answers]
        assert results == [(200, "[DONE]"), (200, "answered")] * 2
        assert answer(server.url, {**BODY, "model": "other"}) == (404, "model_not_found")
        server.stop()


def test_at_sigterm_requests_that_run_or_wait_are_answered(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    body = {**BODY, "max_tokens": 1000, "context_overflow": "slide", "model": "model"}
    bodies = [{**body, "stream": stream} for stream in [True, False] * 3]
    with running_server(tiny_bundle, tmp_path / "log", slots=2) as server:
        with under_load(server.url, bodies) as answers:
            until(lambda: " 4.0" in _metric(server.url, "serve_llm_queue_length"))
            assert server.stop() == 0
            assert [each.result() for each in answers] == [(200, "[DONE]"), (200, "answered")] * 3
        assert list(server.errors()) == []


def _metric(url: str, name: str) -> str:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(line for line in lines if line.startswith(name))
