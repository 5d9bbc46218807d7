"""Sources of sequences that wait, encoded in one batch with that of a sequence that begins."""

from collections.abc import Iterable
from itertools import islice
from weakref import WeakSet

from serving.decoding import Sequence
from serving.engine import EncodedSource, IntArray, SourceEngine
from serving.request_queue import Job

# So many of the waiting sequences are looked at.
LOOK_AHEAD = 32

# A product with one row goes another way through ONNX Runtime, and is rounded otherwise: a source
# of one token is encoded alone, so that it gives the same tokens whatever else waits.
SHORTEST = 2

# Lengths in a batch differ by so many tokens, or by this share of the first one's: what is padded
# is computed for nothing.
CLOSE_TOKENS = 8
CLOSE_SHARE = 0.25


class SourceBatches:
    """Lets slots of an ``engine`` have the sources of sequences that begin.

    What the encoder makes of a source depends on no other one, so a sequence's tokens don't depend
    on which others waited. Nothing new is encoded ahead while earlier ones still wait for their
    slots, so at most one batch is kept in memory.
    """

    def __init__(self, engine: SourceEngine) -> None:
        self._engine = engine
        self._kept: WeakSet[EncodedSource] = WeakSet()  # gone with their jobs, whatever ends those

    def put(self, job: Job, slot: int, waiting: Iterable[Job], budget: int) -> int:
        """Put a job's source into its slot, encoded along with others of those ``waiting``.

        A batch has at most ``budget`` tokens, padding included; a longer source is a batch of its
        own. Returns how many tokens were run.
        """
        tokens = 0
        if job.source is None:
            is_alone = bool(self._kept) or len(_source(job.sequence)) < SHORTEST
            batch = [job] if is_alone else _batch(job, waiting, budget)
            sources = [_source(each.sequence) for each in batch]
            for each, encoded in zip(batch, self._engine.encode_ahead(sources), strict=True):
                each.source = encoded
                self._kept.add(encoded)
            tokens = len(batch) * max(map(len, sources))
        assert job.source is not None
        job.source.put(slot)
        job.source = None
        return tokens


def _batch(first: Job, waiting: Iterable[Job], budget: int) -> list[Job]:
    """The first job, and those whose sources are the most like its own in length."""
    length = len(_source(first.sequence))
    most_apart = max(CLOSE_TOKENS, int(length * CLOSE_SHARE))

    def distance(job: Job) -> int:
        return abs(len(_source(job.sequence)) - length)

    ahead = [job for job in islice(waiting, LOOK_AHEAD) if len(_source(job.sequence)) >= SHORTEST]
    close = [job for job in ahead if distance(job) <= most_apart]
    batch, longest = [first], length
    for job in sorted(close, key=distance):
        longest = max(longest, len(_source(job.sequence)))
        if (len(batch) + 1) * longest > budget:
            break
        batch.append(job)
    return batch


def _source(sequence: Sequence) -> IntArray:
    assert sequence.source_ids is not None
    return sequence.source_ids
