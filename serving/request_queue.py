"""The sequences that wait for a slot: bounded, by priority, and fair between clients."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import zip_longest
from math import inf

from serving.beam_search import BeamParameters
from serving.constraints import Matcher
from serving.decoding import Sequence
from serving.engine import EncodedSource
from serving.errors import UserError


class QueueFullError(UserError):
    """No more requests are taken for now."""


@dataclass(eq=False, slots=True)
class Job:
    """A sequence on its way through the scheduler.

    Jobs of a higher ``priority`` go first; of equal ones each ``client`` has its turn. After
    ``deadline`` (in the scheduler's clock, seconds) the job is given up. With ``beams`` it is a
    search from the sequence's prompt. A ``matcher`` that is still being made constrains the
    sequence, which waits for it. ``source`` is what an encoder has made of its source already.
    """

    sequence: Sequence
    priority: int = 0
    client: str = ""
    deadline: float = inf
    beams: BeamParameters | None = None
    matcher: Future[Matcher] | None = None
    source: EncodedSource | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it can begin."""
        return self.matcher is None or self.matcher.done()


@dataclass(slots=True)
class RequestQueue:
    """Waiting jobs; within a priority clients take turns, and each client's jobs go in order.

    Those that aren't ready are passed over until they are.

    ``limit`` is the most jobs that may wait (None: any number).
    """

    limit: int | None = None
    _levels: dict[int, OrderedDict[str, deque[Job]]] = field(default_factory=dict)
    _soonest: float = inf  # no deadline is before it

    def __len__(self) -> int:
        return sum(len(jobs) for level in self._levels.values() for jobs in level.values())

    def push(self, job: Job) -> None:
        """Add a job; raises QueueFullError."""
        if self.limit is not None and len(self) >= self.limit:
            raise QueueFullError(
                f"{self.limit} requests are waiting already, as many as may: try again later."
            )
        self._jobs_of(job).append(job)

    def push_front(self, job: Job) -> None:
        """Put a job that has begun before all others of its priority; the limit isn't for it."""
        self._jobs_of(job).appendleft(job)
        self._levels[job.priority].move_to_end(job.client, last=False)

    def peek(self) -> Job | None:
        """The job whose turn it is, if any is ready."""
        for priority in sorted(self._levels, reverse=True):
            for jobs in self._levels[priority].values():
                for job in jobs:
                    if job.is_ready:
                        return job
        return None

    def upcoming(self) -> Iterator[Job]:
        """All jobs, in the order of their turns if no others come."""
        for priority in sorted(self._levels, reverse=True):
            for turn in zip_longest(*self._levels[priority].values()):
                yield from (job for job in turn if job is not None)

    def remove(self, job: Job) -> None:
        """Take out the job whose turn it is; its client's next one comes after other clients'."""
        level = self._levels[job.priority]
        level[job.client].remove(job)
        level.move_to_end(job.client)
        self._drop_empty(job.priority, job.client)

    def clear(self) -> list[Job]:
        """Take out all jobs."""
        return self._take(lambda _: True)

    def take(self, index: int) -> Job | None:
        """Take out the job of the sequence of this index, if it is here."""
        return next(iter(self._take(lambda job: job.sequence.index == index)), None)

    def take_late(self, now: float) -> list[Job]:
        """Take out the jobs whose deadline has passed."""
        if now < self._soonest:  # so that a step doesn't look at every job that waits
            return []
        late = self._take(lambda job: job.deadline <= now)
        queues = (jobs for level in self._levels.values() for jobs in level.values())
        self._soonest = min((job.deadline for jobs in queues for job in jobs), default=inf)
        return late

    def _jobs_of(self, job: Job) -> deque[Job]:
        """The queue that a job goes into."""
        self._soonest = min(self._soonest, job.deadline)
        return self._levels.setdefault(job.priority, OrderedDict()).setdefault(job.client, deque())

    def _take(self, is_taken: Callable[[Job], bool]) -> list[Job]:
        taken = []
        for priority, level in list(self._levels.items()):
            for client, jobs in list(level.items()):
                found = [job for job in jobs if is_taken(job)]
                for job in found:
                    jobs.remove(job)
                taken += found
                self._drop_empty(priority, client)
        return taken

    def _drop_empty(self, priority: int, client: str) -> None:
        level = self._levels[priority]
        if not level[client]:
            del level[client]
        if not level:
            del self._levels[priority]
