"""Which texts make up the next batch."""

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.encoders.batching import MOST_PADDING, Tokens
from serving.encoders.text_queue import Chosen, TextJob, TextQueue

BUDGET = 100
_indices = count()


def job(*lengths: int, client: str = "", priority: int = 0) -> TextJob:
    texts = [Tokens([1] * length, [0] * length) for length in lengths]
    return TextJob(next(_indices), texts, priority, client)


def filled(*jobs: TextJob) -> TextQueue:
    queue = TextQueue()
    for each in jobs:
        queue.push(each)
    return queue


def jobs_of(batch: list[Chosen]) -> set[TextJob]:
    return {chosen.job for chosen in batch}


_lengths = st.lists(st.integers(1, 150), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(_lengths, st.sampled_from("abc"), st.integers(0, 1)), max_size=8))
def test_every_text_runs_once_in_batches_within_the_budget(
    given_jobs: list[tuple[list[int], str, int]],
) -> None:
    jobs = [job(*lengths, client=client, priority=p) for lengths, client, p in given_jobs]
    queue, ran = filled(*jobs), list[Chosen]()
    while batch := queue.next_batch(BUDGET):
        sizes = [chosen.tokens.size for chosen in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= BUDGET
        assert sum(max(sizes) - size for size in sizes) <= MOST_PADDING
        ran += batch
    assert len(queue) == 0
    assert sorted((each.job.index, each.number) for each in ran) == [
        (each.index, number) for each in jobs for number in range(len(each.texts))
    ]


def test_what_waits_is_batched_together() -> None:
    jobs = [job(20, client=client) for client in "abcde"]
    assert jobs_of(filled(*jobs).next_batch(BUDGET)) == set(jobs)


def test_a_request_of_many_texts_holds_others_up_for_a_batch_at_most() -> None:
    many = job(*[20] * 1000)
    queue = filled(many)
    assert jobs_of(queue.next_batch(BUDGET)) == {many}
    other = job(20)
    queue.push(other)
    assert other in jobs_of(queue.next_batch(BUDGET))


def test_a_short_text_is_not_starved_by_long_ones_that_keep_coming() -> None:
    short = job(2, client="short")
    queue = filled(job(90, client="long"), short)
    for _ in range(2):
        queue.push(job(90, client="long"))
        assert queue.next_batch(BUDGET)
    assert not short.waiting


def test_clients_take_turns_however_many_requests_they_have() -> None:
    queue = filled(*[job(80, client="busy") for _ in range(50)])
    calm = job(80, client="calm")
    queue.push(calm)
    first, second = (jobs_of(queue.next_batch(BUDGET)) for _ in range(2))
    assert calm in first | second


def test_requests_of_one_client_take_turns() -> None:
    many, one = job(*[80] * 50), job(80)
    queue = filled(many, one)
    batches = [jobs_of(queue.next_batch(BUDGET)) for _ in range(2)]
    assert batches == [{many}, {one}]


def test_a_higher_priority_goes_first_and_lower_ones_fill_its_batch() -> None:
    low, high = job(20, 20, 20, 20, 20, 20), job(20, 90, priority=1)
    queue = filled(low, high)
    first, second = (queue.next_batch(BUDGET) for _ in range(2))
    assert jobs_of(first) == {high}
    assert second[0].job is high or high in jobs_of(second)
    assert len(second) == 5


def test_what_is_taken_out_does_not_run() -> None:
    left, late, kept = job(20), job(20), job(20)
    late.deadline = 1.0
    queue = filled(left, late, kept)
    assert queue.take(left.index)
    assert not queue.take(left.index)
    assert queue.take_late(0.5) == []
    assert queue.take_late(1.5) == [late]
    assert jobs_of(queue.next_batch(BUDGET)) == {kept}
    assert queue.clear() == []


def test_a_masks_logits_take_room() -> None:
    texts = [Tokens([1] * 10, [0] * 10, [3]) for _ in range(3)]
    queue = filled(TextJob(0, texts))
    assert [len(queue.next_batch(2 * 64)) for _ in range(2)] == [2, 1]
