"""A worker process behind an event loop: streams, cancellation, death and replacement."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving
from serving import UserError
from serving.beam_search import BeamParameters
from serving.scheduler import DeadlineError
from serving.worker.client import WorkerClient, WorkerLostError
from serving.worker.messages import Request, WorkerOptions
from tests.serving.tiny_bundle import make_bundle

LONG = 400


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("worker") / "bundle")


def with_worker(
    bundle: Path, use: Callable[[WorkerClient], Awaitable[None]], slots: int = 2, **changes: Any
) -> None:
    """Run ``use`` on a worker, of two slots if not more, within a minute."""

    async def run() -> None:
        options = {"slots": slots, "capacity": 512, "prefix_rows": 2, "threads": 1}
        client = WorkerClient(WorkerOptions(bundle, options, queue_limit=8, **changes))
        await client.start()
        try:
            await asyncio.wait_for(use(client), 60)
        finally:
            await client.close()

    asyncio.run(run())


def request(first: int, new_tokens: int, **changes: Any) -> Request:
    prompt = np.arange(first, first + 20) % 31
    return Request(prompt, {"max_new_tokens": new_tokens, "ignore_eos": True}, **changes)


async def tokens_of(client: WorkerClient, wanted: Request) -> list[int]:
    return [token.token_id async for token in client.generate(wanted)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_streams_together_get_what_each_would_get_alone(bundle: Path) -> None:
    wanted = [request(first, 30) for first in range(4)]
    with serving.load(bundle, capacity=512, slots=1) as model:
        expected = [model.generate(r.prompt_ids, **r.options).token_ids for r in wanted]

    async def use(client: WorkerClient) -> None:
        assert await asyncio.gather(*(tokens_of(client, r) for r in wanted)) == expected
        assert await tokens_of(client, wanted[-1]) == expected[-1]
        assert client.load.reused_tokens == len(wanted[-1].prompt_ids) - 1
        assert client.in_flight == 0

    with_worker(bundle, use)


def test_a_search_runs_beside_streams(bundle: Path) -> None:
    wanted = request(3, 20, beams=BeamParameters(2, num_return_sequences=2))
    with serving.load(bundle, capacity=512, slots=3) as model:
        found = model.generate(
            wanted.prompt_ids, num_beams=2, num_return_sequences=2, **wanted.options
        )

    async def use(client: WorkerClient) -> None:
        stream = asyncio.create_task(tokens_of(client, request(1, 100)))
        assert await client.search(wanted) == found
        with pytest.raises(UserError, match="num_beams is 4, but there are 3 slots"):
            await client.search(request(3, 20, beams=BeamParameters(4)))
        assert len(await stream) == 100
        await until(lambda: client.load.decoding == 0)

    with_worker(bundle, use, slots=3)


def test_leaving_a_stream_frees_its_slot(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        left = [client.generate(request(first, LONG)) for first in range(2)]
        for stream in left:
            await anext(stream)
        await until(lambda: client.load.decoding == 2)
        for stream in left:
            await stream.aclose()  # type: ignore[attr-defined]
        assert len(await tokens_of(client, request(5, 3))) == 3
        await until(lambda: client.load.decoding == 0)

    with_worker(bundle, use)


def test_what_cannot_be_run_is_an_error_of_its_request_alone(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        running = asyncio.create_task(tokens_of(client, request(1, 100)))
        with pytest.raises(UserError, match="don't fit into the capacity"):
            await tokens_of(client, request(1, 600))
        with pytest.raises(UserError, match="finished in its time"):
            await tokens_of(client, request(1, LONG, seconds=0.0))
        assert len(await running) == 100

    with_worker(bundle, use)


def test_a_worker_that_dies_is_replaced(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        first = client.process_id
        assert first is not None
        stream = client.generate(request(1, LONG))
        await anext(stream)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="send it again"):
            async for _ in stream:
                pass
        with pytest.raises(WorkerLostError, match="started again"):
            await tokens_of(client, request(1, 3))
        await until(lambda: client.opened is not None)
        assert client.restarts == 1
        assert client.process_id != first
        assert len(await tokens_of(client, request(1, 3))) == 3

    with_worker(bundle, use)


def test_a_worker_that_hangs_is_replaced(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        stream = client.generate(request(1, LONG))
        await anext(stream)
        hung = stop(client)
        with pytest.raises(WorkerLostError, match="send it again"):
            async for _ in stream:
                pass
        await until(lambda: client.opened is not None)
        assert client.restarts == 1
        assert client.process_id != hung
        assert len(await tokens_of(client, request(1, 3))) == 3

    with_worker(bundle, use, silent_seconds=0.3)


def test_a_worker_without_work_may_be_silent(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        unread = client.generate(request(1, 3))
        await anext(unread)  # the worker has ended it, nobody has read that
        await until(lambda: client.load.decoding == 0)
        await asyncio.sleep(0.5)
        assert client.restarts == 0
        await unread.aclose()  # type: ignore[attr-defined]

    with_worker(bundle, use, silent_seconds=0.1)


def test_deadlines_hold_while_the_worker_hangs(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        stop(client)
        with pytest.raises(DeadlineError):
            await tokens_of(client, request(1, 3, seconds=0.1))
        assert client.in_flight == 0

    with_worker(bundle, use)


def test_a_worker_that_reads_nothing_does_not_hold_up_the_event_loop(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        # It goes on if the event loop is held up, and its answers are other ones.
        rescue = threading.Timer(5, os.kill, (stop(client), signal.SIGCONT))
        rescue.start()
        # Together more than a pipe holds.
        prompt = np.zeros(100_000, np.int64)
        large = [Request(prompt, {"max_new_tokens": 1}, seconds=0.1) for _ in range(4)]
        results = await asyncio.gather(
            *(tokens_of(client, each) for each in large), return_exceptions=True
        )
        rescue.cancel()
        assert [type(result) for result in results] == [DeadlineError] * 4

    with_worker(bundle, use)


def stop(client: WorkerClient) -> int:
    """Let the worker hang; returns its process."""
    assert client.process_id is not None
    os.kill(client.process_id, signal.SIGSTOP)
    return client.process_id


def test_draining_waits_for_streams(bundle: Path) -> None:
    async def use(client: WorkerClient) -> None:
        running = asyncio.create_task(tokens_of(client, request(1, LONG)))
        await until(lambda: client.in_flight == 1)
        assert not await client.drain(0)
        assert await client.drain(30)
        assert len(await running) == LONG

    with_worker(bundle, use)


def test_a_bundle_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    async def run() -> None:
        client = WorkerClient(WorkerOptions(tmp_path))
        with pytest.raises(UserError, match=r"no bundle\.json"):
            await client.start()
        await client.close()

    asyncio.run(run())
