"""The server's side of a worker: starts it, streams from it, and replaces it when it dies."""

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from serving.decoding import Failure, Token
from serving.embedding import Embedded
from serving.engine import FloatArray
from serving.errors import EngineError, UserError
from serving.scheduler import Outcome
from serving.worker.messages import (
    Cancel,
    EmbedRequest,
    Load,
    NotOpened,
    Opened,
    Progress,
    Request,
    Submit,
    ToServer,
    ToWorker,
    WorkerOptions,
)
from serving.worker.process import work

# Waiting times before a worker that died is started again, in seconds; the last one repeats.
PAUSES = (0.0, 1.0, 5.0, 30.0)


# So many tokens may wait for whoever reads a stream; then it is given up, and its slot is free.
BACKLOG = 8192


class SlowReaderError(UserError):
    """A stream wasn't read for so long that it was given up."""


class WorkerLostError(EngineError):
    """The worker ended while it worked on a request, or is being started."""


class WorkerClient:
    """A worker process and the streams that it feeds, for one event loop.

    ``start`` first. ``opened`` is what the worker said of its engine, or None while it isn't ready.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._streams: dict[int, asyncio.Queue[Outcome]] = {}
        self._indices = count()
        self._supervisor: asyncio.Task[None] | None = None
        self._pipe: Connection | None = None
        self._process: BaseProcess | None = None
        self.opened: Opened | None = None
        self.load = Load()
        self.restarts = 0

    @property
    def in_flight(self) -> int:
        """Requests that haven't ended."""
        return len(self._streams)

    @property
    def process_id(self) -> int | None:
        """The worker's process, if it runs."""
        return self._process.pid if self._process else None

    async def start(self) -> Opened:
        """Start the worker and wait until it is ready; raises UserError if it can't open."""
        opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(opened))
        return await opened

    async def generate(self, request: Request) -> AsyncGenerator[Token]:
        """Yield the tokens of a request as they come; leaving early cancels it at once.

        Raises UserError for a request that can't be run or wasn't finished, and WorkerLostError.
        """
        async with aclosing(self._outcomes(request)) as outcomes:
            async for outcome in outcomes:
                assert isinstance(outcome, Token)
                yield outcome

    async def embed(self, request: EmbedRequest) -> FloatArray:
        """Return the vector float32 [hidden] of a prompt; raises as ``generate`` does."""
        async with aclosing(self._outcomes(request)) as outcomes:
            outcome = await anext(outcomes)
        assert isinstance(outcome, Embedded)
        return outcome.vector

    async def _outcomes(self, request: Request | EmbedRequest) -> AsyncGenerator[Token | Embedded]:
        if self.opened is None:
            raise WorkerLostError("The engine is being started again: try again in some seconds.")
        index = next(self._indices)
        events: asyncio.Queue[Outcome] = asyncio.Queue()
        self._streams[index] = events
        has_ended = False
        try:
            self._send(Submit(index, request))
            while not has_ended:
                event = await events.get()
                has_ended = not isinstance(event, Token) or event.finish_reason is not None
                if isinstance(event, Failure):
                    raise event.error
                yield event
        finally:
            del self._streams[index]
            if not has_ended:
                self._send(Cancel(index))

    async def drain(self, seconds: float) -> bool:
        """Wait for all requests to end, so long at most; returns whether they did."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._streams and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return not self._streams

    async def close(self) -> None:
        """End the worker; requests that still run fail."""
        if self._supervisor is None:
            return
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        self._supervisor, self.opened = None, None
        self._fail_streams()

    async def _supervise(self, first: "asyncio.Future[Opened]") -> None:
        """Run one worker after the other."""
        failures = 0
        while True:
            await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
            reason = await self._run_worker(first)
            if not first.done():
                first.set_exception(UserError(reason))
                return
            failures = failures + 1 if self.opened is None else 0
            self.opened, self.load = None, Load()
            self.restarts += 1
            self._fail_streams()

    async def _run_worker(self, first: "asyncio.Future[Opened]") -> str:
        """Start a worker, follow it to its end and return what that was."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(self._options, theirs), daemon=True)
        process.start()
        theirs.close()
        self._pipe, self._process = ours, process
        messages: asyncio.Queue[ToServer | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read, args=(ours, loop, messages), daemon=True).start()
        reason = "The engine's process ended before it was ready: see its output."
        try:
            while (message := await messages.get()) is not None:
                match message:
                    case Opened():
                        self.opened = message
                        if not first.done():
                            first.set_result(message)
                    case NotOpened():
                        reason = message.reason
                    case Progress():
                        self._deliver(message)
        finally:
            self._pipe = self._process = None
            ours.close()
            process.kill()
            await asyncio.to_thread(process.join)
        return reason

    def _deliver(self, progress: Progress) -> None:
        self.load = progress.load
        for event in progress.events:
            stream = self._streams.get(event.index)
            if stream is None:  # nobody waits for it any more
                continue
            stream.put_nowait(event)
            if stream.qsize() == BACKLOG:
                self._send(Cancel(event.index))
                stream.put_nowait(Failure(event.index, _slow_reader()))

    def _fail_streams(self) -> None:
        for index, stream in self._streams.items():
            error = WorkerLostError(
                "The engine's process ended while it worked on this request: send it again."
            )
            stream.put_nowait(Failure(index, error))

    def _send(self, message: ToWorker) -> None:
        """Send if there is a worker; what it loses ends as its other requests do."""
        if self._pipe is not None:
            try:
                self._pipe.send(message)
            except (BrokenPipeError, OSError):
                return


def _slow_reader() -> SlowReaderError:
    return SlowReaderError(
        f"{BACKLOG} tokens of the stream are waiting to be read, and it was ended: read faster or "
        "ask for fewer tokens."
    )


def _read(
    pipe: Connection, loop: asyncio.AbstractEventLoop, messages: "asyncio.Queue[ToServer | None]"
) -> None:
    """Pass what the worker sends to the event loop; None when it is gone."""
    message: ToServer | None
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            message = None
        try:
            loop.call_soon_threadsafe(messages.put_nowait, message)
        except RuntimeError:  # the loop is closed
            return
        if message is None:
            return
