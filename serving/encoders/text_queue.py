"""The texts that wait for an encoder: which of them make up the next batch."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from serving.encoders.batching import Tokens, micro_batches
from serving.encoders.joining import Row

# Of what waits, a batch is chosen among so many budgets of tokens: more are rarely alike.
_LOOKED_AT = 4


@dataclass(eq=False, slots=True)
class TextJob:
    """A request on its way: its texts, and what the graph gave for those that ran.

    Jobs of a higher ``priority`` go first; of equal ones each ``client`` has its turn. After
    ``deadline`` (in the loop's clock, seconds) the job is given up.
    """

    index: int
    texts: Sequence[Tokens]
    priority: int = 0
    client: str = ""
    deadline: float = inf
    rows: dict[int, Row] = field(default_factory=dict)
    # Numbers of the texts that haven't run, as the keys of a dictionary, which keeps their order.
    waiting: dict[int, None] = field(init=False)

    def __post_init__(self) -> None:
        # Longest first: neighbours are alike, and make up a batch with little padding.
        order = sorted(range(len(self.texts)), key=lambda number: -self.texts[number].size)
        self.waiting = dict.fromkeys(order)

    @property
    def is_done(self) -> bool:
        """Whether all of its texts have run."""
        return len(self.rows) == len(self.texts)


class Chosen(NamedTuple):
    """A text of a job, by its number."""

    job: TextJob
    number: int

    @property
    def tokens(self) -> Tokens:
        """What is run."""
        return self.job.texts[self.number]


class TextQueue:
    """Jobs with texts that haven't run; within a priority clients take turns, and so do their jobs.

    A batch always has the text whose turn it is, so none waits for ever, whatever comes after it.
    """

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, OrderedDict[int, TextJob]]] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self._jobs())

    def push(self, job: TextJob) -> None:
        """Add a job."""
        clients = self._levels.setdefault(job.priority, OrderedDict())
        clients.setdefault(job.client, OrderedDict())[job.index] = job

    def take(self, index: int) -> bool:
        """Take out the job of this index; returns whether it was here."""
        found = [job for job in self._jobs() if job.index == index]
        self._remove(found)
        return bool(found)

    def take_late(self, now: float) -> list[TextJob]:
        """Take out the jobs whose deadline has passed."""
        late = [job for job in self._jobs() if job.deadline <= now]
        self._remove(late)
        return late

    def clear(self) -> list[TextJob]:
        """Take out all jobs."""
        jobs = list(self._jobs())
        self._levels.clear()
        return jobs

    def next_batch(self, budget: int) -> list[Chosen]:
        """Take out the text whose turn it is, and others of about its length that fit beside it.

        They take ``budget`` tokens at most, with padding, unless one alone takes more.
        """
        turns = list(self._turns(_LOOKED_AT * budget))
        if not turns:
            return []
        sizes = [chosen.tokens.size for chosen in turns]
        batch = next(batch for batch in micro_batches(sizes, budget) if 0 in batch)
        chosen = [turns[at] for at in batch]
        for job, number in chosen:
            del job.waiting[number]
        for job in dict.fromkeys(each.job for each in chosen):
            self._end_turn(job)
        return chosen

    def _jobs(self) -> Iterator[TextJob]:
        for clients in self._levels.values():
            for jobs in clients.values():
                yield from jobs.values()

    def _turns(self, tokens: int) -> Iterator[Chosen]:
        """Texts in the order of their turns, until they have so many tokens."""
        for priority in sorted(self._levels, reverse=True):
            clients = self._levels[priority].values()
            for chosen in _in_turn(
                _in_turn([Chosen(job, number) for number in job.waiting] for job in jobs.values())
                for jobs in clients
            ):
                if tokens <= 0:
                    return
                tokens -= chosen.tokens.size
                yield chosen

    def _end_turn(self, job: TextJob) -> None:
        """Let others come first: the client's other jobs, and other clients."""
        clients = self._levels[job.priority]
        clients.move_to_end(job.client)
        if job.waiting:
            clients[job.client].move_to_end(job.index)
        else:
            self._remove([job])

    def _remove(self, jobs: Iterable[TextJob]) -> None:
        for job in jobs:
            clients = self._levels[job.priority]
            del clients[job.client][job.index]
            if not clients[job.client]:
                del clients[job.client]
            if not clients:
                del self._levels[job.priority]


def _in_turn(sequences: Iterable[Iterable[Chosen]]) -> Iterator[Chosen]:
    """The first of each, then the second of each, and so on."""
    remaining = [iter(each) for each in sequences]
    while remaining:
        going_on = []
        for each in remaining:
            for chosen in each:
                yield chosen
                going_on.append(each)
                break
        remaining = going_on
