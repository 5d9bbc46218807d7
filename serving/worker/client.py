"""The server's side of a worker: starts it, streams from it, and replaces it when it dies."""

import asyncio
import logging
import multiprocessing
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count
from multiprocessing.process import BaseProcess

from serving.beam_search import Found
from serving.decoding import Failure, Token
from serving.embedding import Embedded
from serving.encoders.joining import Row
from serving.engine import FloatArray
from serving.errors import EngineError, UserError
from serving.result import Generation
from serving.scheduler import TOO_LATE, DeadlineError
from serving.worker.messages import (
    BatchProgress,
    Cancel,
    EmbedRequest,
    Encoded,
    EncodeRequest,
    Load,
    NotOpened,
    Opened,
    Progress,
    Request,
    Submit,
    SubmitTexts,
    ToWorker,
    WorkerEvent,
    WorkerOptions,
)
from serving.worker.pipe import Pipe
from serving.worker.process import work

# Waiting times before a worker that died is started again, in seconds; the last one repeats.
PAUSES = (0.0, 1.0, 5.0, 30.0)

# The worker itself gives up what is late. A step that takes long, or a worker that hangs, keeps it
# from that: then the server does, so many seconds later.
GRACE = 1.0

# A worker that hangs is found by looking so many times in the seconds after which it is killed.
LOOKS = 10

# So many tokens may wait for whoever reads a stream; then it is given up, and its slot is free.
BACKLOG = 8192

_log = logging.getLogger(__name__)


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
        self._streams: dict[int, asyncio.Queue[WorkerEvent]] = {}
        self._unfinished: set[int] = set()  # what the worker has to do
        self._indices = count()
        self._supervisor: asyncio.Task[None] | None = None
        self._pipe: Pipe | None = None
        self._process: BaseProcess | None = None
        self._owes_answer = False  # a worker says something after every message
        self._silent_looks = 0
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

    async def search(self, request: Request) -> list[Generation]:
        """Return what a request with beams finds, best first; raises as ``generate`` does."""
        async with aclosing(self._outcomes(request)) as outcomes:
            outcome = await anext(outcomes)
        assert isinstance(outcome, Found)
        return outcome.generations

    async def embed(self, request: EmbedRequest) -> FloatArray:
        """Return the vector float32 [hidden] of a prompt; raises as ``generate`` does."""
        async with aclosing(self._outcomes(request)) as outcomes:
            outcome = await anext(outcomes)
        assert isinstance(outcome, Embedded)
        return outcome.vector

    async def encode(self, request: EncodeRequest) -> list[Row]:
        """Return what an encoder's graph gives for each text; raises as ``generate`` does."""
        async with aclosing(self._outcomes(request)) as outcomes:
            outcome = await anext(outcomes)
        assert isinstance(outcome, Encoded)
        return outcome.rows

    async def _outcomes(
        self, request: Request | EmbedRequest | EncodeRequest
    ) -> AsyncGenerator[Token | Embedded | Found | Encoded]:
        if self.opened is None:
            raise WorkerLostError("The engine is being started again: try again in some seconds.")
        index = next(self._indices)
        events: asyncio.Queue[WorkerEvent] = asyncio.Queue()
        self._streams[index] = events
        deadline = None
        if request.seconds is not None:
            deadline = asyncio.get_running_loop().time() + request.seconds + GRACE
        try:
            self._unfinished.add(index)
            self._send(_submission(index, request))
            has_ended = False
            while not has_ended:
                event = await _next_event(events, deadline)
                if isinstance(event, Failure):
                    raise event.error
                has_ended = _is_last(event)
                yield event
        finally:
            del self._streams[index]
            self._cancel(index)

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
        pipe = Pipe(ours, asyncio.get_running_loop())
        self._pipe, self._process = pipe, process
        watching = asyncio.create_task(self._kill_if_hung(process))
        reason = "The engine's process ended before it was ready: see its output."
        try:
            while (message := await pipe.received.get()) is not None:
                match message:
                    case Opened():
                        self.opened = message
                        if not first.done():
                            first.set_result(message)
                    case NotOpened():
                        reason = message.reason
                    case Progress() | BatchProgress():
                        self._deliver(message)
                self._owes_answer, self._silent_looks = bool(self._unfinished), 0
        finally:
            self._pipe = self._process = None
            watching.cancel()
            process.kill()
            await asyncio.to_thread(process.join)
            await asyncio.to_thread(pipe.close)
        return reason

    async def _kill_if_hung(self, process: BaseProcess) -> None:
        """Kill a worker that should have said something for too long.

        Looks are counted, not seconds: those in which this process didn't run either aren't held
        against the worker.
        """
        self._owes_answer, self._silent_looks = False, 0
        while self._silent_looks < LOOKS:
            await asyncio.sleep(self._options.silent_seconds / LOOKS)
            self._silent_looks += self._owes_answer
        _log.error("the worker hangs and is killed")
        process.kill()

    def _deliver(self, progress: Progress | BatchProgress) -> None:
        self.load = progress.load
        for event in progress.events:
            if _is_last(event):
                self._unfinished.discard(event.index)
            stream = self._streams.get(event.index)
            if stream is None:  # nobody waits for it any more
                continue
            stream.put_nowait(event)
            if stream.qsize() == BACKLOG:
                self._cancel(event.index)
                stream.put_nowait(Failure(event.index, _slow_reader()))

    def _fail_streams(self) -> None:
        self._unfinished.clear()
        for index, stream in self._streams.items():
            error = WorkerLostError(
                "The engine's process ended while it worked on this request: send it again."
            )
            stream.put_nowait(Failure(index, error))

    def _cancel(self, index: int) -> None:
        """Let the worker forget a request that it hasn't finished."""
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._send(Cancel(index))

    def _send(self, message: ToWorker) -> None:
        """Send if there is a worker; what it loses ends as its other requests do."""
        if self._pipe is not None:
            self._owes_answer = True
            self._pipe.send(message)


def _submission(
    index: int, request: Request | EmbedRequest | EncodeRequest
) -> Submit | SubmitTexts:
    if isinstance(request, EncodeRequest):
        return SubmitTexts(index, request)
    return Submit(index, request)


async def _next_event(events: "asyncio.Queue[WorkerEvent]", deadline: float | None) -> WorkerEvent:
    """The next event of a stream; raises DeadlineError after ``deadline``, in the loop's time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await events.get()
    except TimeoutError:
        raise DeadlineError(TOO_LATE) from None


def _is_last(event: WorkerEvent) -> bool:
    return not isinstance(event, Token) or event.finish_reason is not None


def _slow_reader() -> SlowReaderError:
    return SlowReaderError(
        f"{BACKLOG} tokens of the stream are waiting to be read, and it was ended: read faster or "
        "ask for fewer tokens."
    )
