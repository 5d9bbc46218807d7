"""The loop of an encoder: take what came in, run a batch of what waits, say what it gave."""

from collections.abc import Iterator
from time import perf_counter
from typing import Protocol

import numpy as np

from serving.decoding import Failure
from serving.encoders.model import EncoderModel
from serving.encoders.text_queue import Chosen, TextJob, TextQueue
from serving.errors import EngineError
from serving.sampling import no_number
from serving.scheduler import TOO_LATE, DeadlineError
from serving.worker.messages import BatchProgress, Cancel, Encoded, Load, SubmitTexts

# Whom a batch answered may ask again at once: such a part of its time is waited for them. Without
# that the first to ask again would run alone, and all others after it.
_GATHERING = 0.1


class TextChannel(Protocol):
    """The loop's side of a connection; see serving.worker.loop.Channel."""

    def poll(self, timeout: float | None = 0.0, /) -> bool:
        """Whether something came in, after ``timeout`` seconds at most (None: wait for it)."""
        ...

    def recv(self) -> SubmitTexts | Cancel:
        """Take what came in first; raises EOFError when the other side is closed."""
        ...

    def send(self, progress: BatchProgress, /) -> None:
        """Say what a batch gave."""
        ...


class EncoderLoop:
    """Runs a model's batches for whoever is at the other end of a channel.

    What waits when the engine becomes free is batched together. A request of many texts runs a
    batch at a time, in turn with others. What nobody waits for any more is never begun.
    """

    def __init__(self, model: EncoderModel, channel: TextChannel) -> None:
        self._model = model
        self._channel = channel
        self._queue = TextQueue()
        self._batches = self._tokens = self._padding = 0
        self._answered = 0  # by the last batch
        self._gathered_at = 0.0  # when nobody is waited for any more

    def run(self) -> None:
        """Take what was sent, then run a batch; without work wait for more.

        Raises EOFError when the other side has closed the channel, and EngineError, after which the
        engine can't go on.
        """
        while True:
            if not len(self._queue):
                self._channel.poll(None)
            while self._channel.poll(self._patience()):
                self._take(self._channel.recv())
            events = [*self._late(), *self._step()]
            self._channel.send(BatchProgress(events, self._load()))

    def _patience(self) -> float:
        """Seconds to wait for the next request before a batch is run."""
        if len(self._queue) >= self._answered:
            return 0
        return max(self._gathered_at - perf_counter(), 0)

    def _take(self, message: SubmitTexts | Cancel) -> None:
        if isinstance(message, Cancel):
            self._queue.take(message.index)
            return
        request = message.request
        job = TextJob(message.index, request.texts, request.priority, request.client)
        if request.seconds is not None:
            job.deadline = perf_counter() + request.seconds
        self._queue.push(job)

    def _late(self) -> Iterator[Failure]:
        for job in self._queue.take_late(perf_counter()):
            yield Failure(job.index, DeadlineError(TOO_LATE))

    def _step(self) -> Iterator[Encoded | Failure]:
        """Run the next batch; yield what ended with it."""
        batch = self._queue.next_batch(self._model.batch_tokens)
        if not batch:
            return
        begin = perf_counter()
        try:
            rows = self._model.run_batch([chosen.tokens for chosen in batch])
        except EngineError as error:
            self._fail_all(batch, error)
            raise
        self._count(batch)
        for (job, number), row in zip(batch, rows, strict=True):
            job.rows[number] = row
        ended = [job for job in dict.fromkeys(chosen.job for chosen in batch) if job.is_done]
        self._answered = len(ended)
        self._gathered_at = perf_counter() + _GATHERING * (perf_counter() - begin)
        yield from map(_ended, ended)

    def _count(self, batch: list[Chosen]) -> None:
        lengths = [len(chosen.tokens.ids) for chosen in batch]
        self._batches += 1
        self._tokens += sum(lengths)
        self._padding += max(lengths) * len(lengths) - sum(lengths)

    def _fail_all(self, batch: list[Chosen], error: EngineError) -> None:
        jobs = dict.fromkeys([*(chosen.job for chosen in batch), *self._queue.clear()])
        self._channel.send(BatchProgress([Failure(job.index, error) for job in jobs], self._load()))

    def _load(self) -> Load:
        return Load(
            waiting=len(self._queue),
            batches=self._batches,
            batch_tokens=self._tokens,
            padding_tokens=self._padding,
        )


def _ended(job: TextJob) -> Encoded | Failure:
    rows = [job.rows[number] for number in range(len(job.texts))]
    if any(np.isnan(output).any() for row in rows for output in row):
        return Failure(job.index, no_number())
    return Encoded(job.index, rows)
