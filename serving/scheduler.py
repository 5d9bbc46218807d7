"""Continuous batching: requests join and leave between the steps of one engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np

from serving.beam_search import BeamSearch, Found, check_search
from serving.decoding import Decoder, Event, Failure, Sequence, Token, extend
from serving.embedding import Embedded, EmbeddedPrompt, require_embeddings
from serving.engine import Engine, FloatArray, require_encoder
from serving.errors import UserError
from serving.pacing import Pacing
from serving.prefix_cache import CachedRow, PrefixCache
from serving.request_queue import Job, RequestQueue
from serving.source_batches import SourceBatches

# What a DeadlineError says.
TOO_LATE = (
    "The request wasn't finished in its time: ask for fewer tokens, give it more time or try again "
    "later."
)


class DeadlineError(UserError):
    """A request took longer than it was given."""


Outcome = Event | Embedded | Found

StepKind = Literal["chunk", "decode", "search"]


@dataclass(slots=True)
class Prefill:
    """A sequence whose context is being run: its first ``done`` tokens are in the ``slot``.

    So many of them were ``reused``, not run.
    """

    job: Job
    slot: int
    done: int
    reused: int


@dataclass(slots=True)
class Search:
    """A beam search that is under way."""

    job: Job
    beams: BeamSearch


class Scheduler:
    """Runs sequences over an engine's slots; ``step`` does a little of everything.

    Decoding sequences hold the first slots and advance together. One sequence at a time is
    prefilled, in the slot behind them, a chunk between two decode steps: so a stream waits for one
    chunk at most. When a sequence ends, the last one moves into its slot.

    One beam search at a time holds the last slots. It waits for them until so many streams have
    ended, and nothing overtakes it meanwhile. Then its steps, chunks of others' prompts and decode
    steps take turns.

    Before an encoder-decoder's first chunk its encoder runs, on sources of waiting sequences too if
    all of them together are no longer than a chunk.

    With ``fills_slots_first`` nothing is decoded while there is a prompt that has a slot.

    Not thread-safe: one thread submits, cancels and steps. ``clock`` gives seconds.
    """

    def __init__(
        self,
        engine: Engine,
        decoder: Decoder,
        pacing: Pacing,
        *,
        queue: RequestQueue | None = None,
        prefixes: PrefixCache | None = None,
        fills_slots_first: bool = False,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._engine = engine
        self._decoder = decoder
        self._pacing = pacing
        self._prefixes = prefixes
        self._sources = SourceBatches(require_encoder(engine)) if engine.cache.source else None
        self._fills_slots_first = fills_slots_first
        self._clock = clock
        self.waiting = RequestQueue() if queue is None else queue
        self.active: list[Job] = []
        self.prefill: Prefill | None = None
        self.search: Search | None = None
        self._turns: list[StepKind] = ["chunk", "decode", "search"]

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.active or self.prefill or self.search or len(self.waiting))

    @property
    def is_held_up(self) -> bool:
        """Whether there is something to do, but none of it can begin yet."""
        begun = self.active or self.prefill or self.search
        return len(self.waiting) > 0 and not begun and self.waiting.peek() is None

    def submit(self, job: Job) -> None:
        """Let a sequence wait for its turn.

        Raises QueueFullError, and UserError for a search that isn't possible.
        """
        if job.beams is not None:
            check_search(self._pacing.slots, job.beams, job.sequence)
        self.waiting.push(job)

    def cancel(self, index: int) -> bool:
        """Forget a sequence at once, wherever it is; returns whether it was here."""
        if self.waiting.take(index) is not None:
            return True
        for job in self._begun():
            if job.sequence.index == index:
                self._drop(job)
                return True
        return False

    def clear(self) -> list[int]:
        """Forget all sequences; returns their indices."""
        jobs = [*self._begun(), *self.waiting.clear()]
        for job in jobs:
            self._decoder.forget(job.sequence)
        self.active, self.prefill, self.search = [], None, None
        return [job.sequence.index for job in jobs]

    def step(self) -> list[Outcome]:
        """Give up what is late, then do a chunk of a prompt, or a step of all streams or a search.

        They take turns, so that no token waits here for what comes after it.

        Raises EngineError where the engine itself failed: nothing can go on then.
        """
        events: list[Outcome] = [*self._give_up_late(), *self._admit()]
        kind = self._next_kind()
        if kind == "chunk" and self.prefill:
            events += self._run_chunk(self.prefill)
        elif kind == "decode":
            events += self._decode()
        elif kind == "search" and self.search:
            events += self._finish(self.search, self.search.beams.advance())
        return events

    def run(self) -> Iterator[Outcome]:
        """Step until nothing is left to do."""
        while not self.is_idle:
            yield from self.step()

    def _begun(self) -> list[Job]:
        return [*self.active, *(other.job for other in (self.prefill, self.search) if other)]

    def _give_up_late(self) -> Iterator[Failure]:
        now = self._clock()
        late = self.waiting.take_late(now)
        for job in [job for job in self._begun() if job.deadline <= now]:
            self._drop(job)
            late.append(job)
        for job in late:
            yield Failure(job.sequence.index, DeadlineError(TOO_LATE))

    def _next_kind(self) -> StepKind | None:
        """What there is to do and was done least recently."""
        has_work = {"chunk": self.prefill, "decode": self.active, "search": self.search}
        if self.prefill and self._fills_slots_first:
            return "chunk"
        for kind in self._turns:
            if has_work[kind]:
                self._turns.remove(kind)
                self._turns.append(kind)
                return kind
        return None

    def _admit(self) -> Iterator[Failure]:
        """Begin the next sequence if there is a slot for it; none overtakes it."""
        job = None if self.prefill else self.waiting.peek()
        slot = None if job is None else self._free_slot(job)
        if job is None or slot is None:
            return
        self.waiting.remove(job)
        sequence, done = job.sequence, 0
        if job.matcher is not None:
            try:
                sequence.matcher = job.matcher.result()
            except UserError as error:
                yield sequence.fail(error)
                return
        if self._prefixes is not None and not isinstance(sequence, EmbeddedPrompt):
            done = self._prefixes.reuse(slot, sequence.context, sequence.adapter, self._running())
        self._engine.cache.adapter_ids[slot] = sequence.adapter
        self.prefill = Prefill(job, slot, done, reused=done)

    def _free_slot(self, job: Job) -> int | None:
        """The slot for a prompt: behind the streams, or the first one of the last for a search."""
        slots = self._pacing.slots
        free = slots - len(self.active) - (self.search.beams.num_beams if self.search else 0)
        if job.beams is not None:
            fits = self.search is None and job.beams.num_beams <= free
            return slots - job.beams.num_beams if fits else None
        return len(self.active) if free and len(self.active) < self._pacing.streams else None

    def _running(self) -> Iterator[CachedRow]:
        for slot, job in enumerate(self.active):
            sequence = job.sequence
            yield CachedRow(slot, sequence.context[: sequence.cached], sequence.adapter)

    def _run_chunk(self, prefill: Prefill) -> Iterator[Outcome]:
        sequence, done = prefill.job.sequence, prefill.done
        size = self._pacing.chunk(len(self.active))
        begin, encoded = self._clock(), 0
        if isinstance(sequence, EmbeddedPrompt):
            engine = require_embeddings(self._engine)
            prefill.done += sequence.run_chunk(engine, done, size, prefill.slot)
        else:
            if self._sources is not None and not done:
                waiting = self.waiting.upcoming()
                encoded = self._sources.put(prefill.job, prefill.slot, waiting, size)
            chunk = sequence.context[None, done : done + size]
            last = np.array([[chunk.shape[1] - 1]])
            logits = self._engine.step(chunk, np.array([done]), last, prefill.slot)[0, 0]
            prefill.done += chunk.shape[1]
        self._pacing.record_prefill(encoded + prefill.done - done, self._clock() - begin)
        if prefill.done < len(sequence.context):
            return
        if isinstance(sequence, EmbeddedPrompt):
            self._drop(prefill.job)
            yield sequence.embedded()
        elif prefill.job.beams is not None:
            beams = BeamSearch(self._engine, sequence, prefill.job.beams, prefill.slot)
            self.prefill, self.search = None, Search(prefill.job, beams)
            yield from self._finish(self.search, beams.begin(logits))
        else:
            yield self._start_decoding(prefill, logits)

    def _start_decoding(self, prefill: Prefill, logits: FloatArray) -> Event:
        """Choose the first token behind a context, and let the sequence join the others."""
        sequence, slot = prefill.job.sequence, len(self.active)
        if prefill.slot != slot:  # others have ended meanwhile
            self._engine.cache.move(prefill.slot, slot, prefill.done)
        self.prefill = None
        self.active.append(prefill.job)
        event = extend(sequence, logits)
        if isinstance(event, Token) and len(sequence.generated_ids) == 1:
            event = replace(event, reused=prefill.reused)
        self._release()
        return event

    def _finish(self, search: Search, end: Found | Failure | None) -> list[Outcome]:
        """Take out a search that has come to an end."""
        if end is None:
            return []
        self._drop(search.job)
        return [end]

    def _decode(self) -> list[Event]:
        begin = self._clock()
        events = self._decoder.advance(self._engine, [job.sequence for job in self.active])
        self._pacing.record_decode(len(self.active), self._clock() - begin)
        self._release()
        return events

    def _release(self) -> None:
        """Take ended sequences out, and those whose context must be run again."""
        for job in [job for job in self.active if job.sequence.finished]:
            self._drop(job)
        for job in [job for job in self.active if job.sequence.is_full]:
            self._drop(job)
            job.sequence.slide()
            self.waiting.push_front(job)

    def _drop(self, job: Job) -> None:
        """Take a sequence out of its slot, into which the last one moves; or a search."""
        self._decoder.forget(job.sequence)
        if self.search and self.search.job is job:
            self.search = None
            return
        if self.prefill and self.prefill.job is job:
            self._keep(self.prefill.slot, job.sequence, self.prefill.done)
            self.prefill = None
            return
        slot = self.active.index(job)
        self._keep(slot, job.sequence, job.sequence.cached)
        last = self.active.pop()
        if slot < len(self.active):
            self._engine.cache.move(len(self.active), slot, last.sequence.cached)
            self.active[slot] = last

    def _keep(self, slot: int, sequence: Sequence, cached: int) -> None:
        if self._prefixes is not None:
            self._prefixes.keep(slot, sequence.context[:cached], sequence.adapter)
