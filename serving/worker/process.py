"""The worker's side: opens the bundle, then steps its scheduler and answers the server."""

import signal
from multiprocessing.connection import Connection
from time import perf_counter

from serving.decoding import Failure, Sequence
from serving.errors import EngineError, UserError
from serving.generation import Model
from serving.loading import load
from serving.request_queue import Job
from serving.scheduler import Outcome, Scheduler
from serving.worker.messages import (
    Cancel,
    EmbedRequest,
    Load,
    NotOpened,
    Opened,
    Progress,
    Submit,
    WorkerOptions,
)


def work(options: WorkerOptions, server: Connection) -> None:
    """Serve until the server closes its end of the pipe, or is gone."""
    # Ctrl-C reaches the whole process group; the server says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model = load(options.bundle, **options.loading)
    except UserError as error:
        server.send(NotOpened(str(error)))
        return
    with model:
        scheduler = model.scheduler(
            target_latency=options.target_latency, queue_limit=options.queue_limit
        )
        cache, engine = model.engine.cache, model.engine
        server.send(Opened(model.slots, cache.capacity, engine.vocab_size, model.gives_embeddings))
        try:
            _Worker(model, scheduler, server).run()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


class _Worker:
    def __init__(self, model: Model, scheduler: Scheduler, server: Connection) -> None:
        self._model = model
        self._scheduler = scheduler
        self._server = server

    def run(self) -> None:
        """Take what the server sent, then do a step; without work wait for the server.

        Raises EOFError when the server has closed the pipe, and EngineError, which ends the worker.
        """
        while True:
            events: list[Outcome] = []
            if self._scheduler.is_idle:
                self._server.poll(None)
            while self._server.poll():
                events += self._take(self._server.recv())
            try:
                events += self._scheduler.step()
            except EngineError as error:
                self._fail_all(error)
                raise
            self._server.send(Progress(events, self._load()))

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
            sequence = self._model.sequence(request.prompt_ids, message.index, **request.options)
        job = Job(sequence, request.priority, request.client)
        if request.seconds is not None:
            job.deadline = perf_counter() + request.seconds
        return job

    def _fail_all(self, error: EngineError) -> None:
        indices = self._scheduler.clear()
        self._server.send(Progress([Failure(index, error) for index in indices], self._load()))

    def _load(self) -> Load:
        scheduler = self._scheduler
        statistics = self._model.prefixes.statistics if self._model.prefixes else None
        return Load(
            waiting=len(scheduler.waiting),
            prefilling=int(scheduler.prefill is not None),
            decoding=len(scheduler.active),
            prompt_tokens=statistics.looked_up if statistics else 0,
            reused_tokens=statistics.reused if statistics else 0,
        )
