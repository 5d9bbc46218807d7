"""Sources of waiting sequences, encoded together: which, and that no result depends on it."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import serving
from serving.decoding import Limits
from serving.decoding import Sequence as Running
from serving.engine import IntArray, require_encoder
from serving.generation import Model
from serving.request_queue import Job, RequestQueue
from serving.sampling import SamplingParameters
from serving.source_batches import SourceBatches
from serving.source_encoder import Encoded, SourceEncoder
from tests.checkpoints import VOCABULARY
from tests.encoder_decoders import shared_bundle
from tests.serving.counting_engine import CountingEngine


class RecordedSource:
    """Remembers the slot that it was put into."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.slot: int | None = None

    def put(self, slot: int) -> None:
        self.slot = slot


class RecordingEngine(CountingEngine):
    """Remembers how long the sources of each batch were."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def encode(self, sources: Sequence[IntArray], first_slot: int) -> None:
        for slot, source in enumerate(self.encode_ahead(sources), first_slot):
            source.put(slot)

    def encode_ahead(self, sources: Sequence[IntArray]) -> list[RecordedSource]:
        self.batches.append([len(source) for source in sources])
        return [RecordedSource(len(source)) for source in sources]


def job(length: int, client: str = "") -> Job:
    limits = Limits(100, 4, 0, (), ())
    source = np.ones(length, np.int64)
    sequence = Running(
        0, np.ones(1, np.int64), SamplingParameters(), limits, None, source_ids=source
    )
    return Job(sequence, client=client)


def batch_of(first: int, waiting: Sequence[int], budget: int = 512) -> list[int]:
    engine = RecordingEngine()
    SourceBatches(engine).put(job(first), 0, [job(length) for length in waiting], budget)
    (batch,) = engine.batches
    return batch


def test_a_batch_is_of_like_lengths_and_within_the_budget() -> None:
    assert batch_of(100, [400, 110, 90, 20, 101]) == [100, 101, 110, 90]
    assert batch_of(4, [1, 2, 12, 13]) == [4, 2, 12]  # a single token is encoded alone
    assert batch_of(1, [2, 1]) == [1]
    assert batch_of(100, [100] * 9, budget=350) == [100] * 3
    assert batch_of(100, [110, 110], budget=215) == [100]  # padded to 110 each
    assert batch_of(600, [600]) == [600]
    assert len(batch_of(2, [2] * 100)) == 33  # so many are looked at


def test_what_was_encoded_ahead_is_put_when_its_turn_comes() -> None:
    engine = RecordingEngine()
    batches = SourceBatches(engine)
    first, second, third = job(10), job(11), job(12)
    assert batches.put(first, 0, [second], 512) == 22
    assert first.source is None
    # While one is kept no other is encoded ahead.
    assert batches.put(third, 1, [job(12)], 512) == 12
    assert batches.put(second, 2, [], 512) == 0
    assert engine.batches == [[10, 11], [12]]
    assert batches.put(job(5), 0, [job(5)], 512) == 10


def test_what_is_kept_for_a_job_goes_with_it() -> None:
    engine = RecordingEngine()
    batches = SourceBatches(engine)
    waiting = [job(10)]
    batches.put(job(10), 0, waiting, 512)
    waiting.clear()  # cancelled
    gc.collect()
    assert batches.put(job(5), 0, [job(5)], 512) == 10


def test_upcoming_jobs_come_in_turn() -> None:
    queue = RequestQueue()
    jobs = [job(1, "a"), job(2, "a"), job(3, "b"), job(4, "b")]
    for each in jobs:
        queue.push(each)
    urgent = Job(job(5).sequence, priority=1)
    queue.push(urgent)
    upcoming = list(queue.upcoming())
    assert upcoming == [urgent, jobs[0], jobs[2], jobs[1], jobs[3]]
    for each in upcoming:
        assert queue.peek() is each
        queue.remove(each)


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    bundle: Path = shared_bundle(tmp_path_factory, request.param) / "bundle"
    with serving.load(bundle, slots=3, threads=1) as opened:
        yield opened


def drawn(lengths: Sequence[int]) -> list[IntArray]:
    random = np.random.default_rng(3)
    return [random.integers(3, VOCABULARY, length) for length in lengths]


def test_a_source_is_encoded_as_alone_bit_by_bit(model: Model) -> None:
    engine = require_encoder(model.engine)
    sources = drawn([2, 5, 31, 32, 33, 40])
    for alone, batched in zip(
        [engine.encode_ahead([source])[0] for source in sources],
        engine.encode_ahead(sources),
        strict=True,
    ):
        assert isinstance(alone, Encoded)
        assert isinstance(batched, Encoded)
        for one, other in zip(alone.results, batched.results, strict=True):
            np.testing.assert_array_equal(one[:, : alone.tokens], other[:, : alone.tokens])


def test_outputs_are_those_of_each_source_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    ahead = SourceEncoder.ahead

    def counted(self: SourceEncoder, sources: Sequence[IntArray]) -> list[Encoded]:
        sizes.append(len(sources))
        return ahead(self, sources)

    prompts = [source.tolist() for source in drawn([1, 9, 30, 12, 33, 2, 31, 60, 59, 14, 1, 28])]
    for options in ({}, {"num_beams": 3}):
        alone = [model.generate(prompt, max_new_tokens=6, **options) for prompt in prompts]  # type: ignore[call-overload]
        with monkeypatch.context() as patch:
            patch.setattr(SourceEncoder, "ahead", counted)
            sizes.clear()
            together = model.generate(prompts, max_new_tokens=6, **options)  # type: ignore[call-overload]
        assert together == alone
        assert sum(sizes) == len(prompts)
        assert max(sizes) > 2
