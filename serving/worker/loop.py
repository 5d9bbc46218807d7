"""The loop of an engine: take what came in, do a step, say what it gave."""

from concurrent.futures import ThreadPoolExecutor, wait
from time import perf_counter
from typing import Protocol

from serving.decoding import Failure, Sequence
from serving.errors import EngineError, UserError
from serving.generation import Model
from serving.request_queue import Job
from serving.scheduler import Outcome, Scheduler
from serving.worker.messages import Cancel, EmbedRequest, Load, Progress, Request, Submit

# So many constraints are compiled at a time, beside the engine's steps.
COMPILERS = 2

# A constraint that is known already is there after so many seconds: its request goes on at once.
KNOWN = 0.002

# While all requests wait for constraints the loop looks again after so many seconds.
PAUSE = 0.005


class Channel(Protocol):
    """The loop's side of a connection: a multiprocessing.Connection, or a queue of a thread."""

    def poll(self, timeout: float | None = 0.0, /) -> bool:
        """Whether something came in, after ``timeout`` seconds at most (None: wait for it)."""
        ...

    def recv(self) -> Submit | Cancel:
        """Take what came in first; raises EOFError when the other side is closed."""
        ...

    def send(self, progress: Progress, /) -> None:
        """Say what a step gave."""
        ...


class EngineLoop:
    """Steps a model's scheduler for whoever is at the other end of a channel."""

    def __init__(self, model: Model, scheduler: Scheduler, channel: Channel) -> None:
        self._model = model
        self._scheduler = scheduler
        self._channel = channel
        self._compilers = ThreadPoolExecutor(COMPILERS, "constraint")

    def run(self) -> None:
        """Take what was sent, then do a step; without work wait for more.

        Raises EOFError when the other side has closed the channel, and EngineError, after which the
        engine can't go on.
        """
        try:
            self._run()
        finally:
            self._compilers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while True:
            events: list[Outcome] = []
            if self._scheduler.is_idle:
                self._channel.poll(None)
            elif self._scheduler.is_held_up:
                self._channel.poll(PAUSE)
            while self._channel.poll():
                events += self._take(self._channel.recv())
            try:
                events += self._scheduler.step()
            except EngineError as error:
                self._fail_all(error)
                raise
            self._channel.send(Progress(events, self._load()))

    def _take(self, message: Submit | Cancel) -> list[Outcome]:
        if isinstance(message, Cancel):
            self._scheduler.cancel(message.index)
            return []
        try:
            self._scheduler.submit(self._job(message))
        except UserError as error:
            return [Failure(message.index, error)]
        return []

    def _job(self, message: Submit) -> Job:
        request = message.request
        constraint = None
        if isinstance(request, EmbedRequest):
            sequence: Sequence = self._model.embedded_prompt(
                request.prompt_ids,
                message.index,
                pooling=request.pooling,
                normalize=request.normalize,
                context_overflow=request.context_overflow,
                adapter=request.adapter,
            )
        else:
            options = request.options.copy()
            if request.beams is None:
                constraint = options.pop("constraint", None)
            sequence = self._model.sequence(request.prompt_ids, message.index, **options)
        job = Job(sequence, request.priority, request.client)
        if isinstance(request, Request):
            job.beams = request.beams
        if constraint is not None:
            job.matcher = self._compilers.submit(self._model.matcher, constraint)
            wait([job.matcher], KNOWN)
        if request.seconds is not None:
            job.deadline = perf_counter() + request.seconds
        return job

    def _fail_all(self, error: EngineError) -> None:
        indices = self._scheduler.clear()
        self._channel.send(Progress([Failure(index, error) for index in indices], self._load()))

    def _load(self) -> Load:
        scheduler = self._scheduler
        statistics = self._model.prefixes.statistics if self._model.prefixes else None
        return Load(
            waiting=len(scheduler.waiting),
            prefilling=int(scheduler.prefill is not None),
            decoding=len(scheduler.active) + (scheduler.search is not None),
            prompt_tokens=statistics.looked_up if statistics else 0,
            reused_tokens=statistics.reused if statistics else 0,
        )
