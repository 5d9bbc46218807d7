"""Which texts run together."""

import random

import pytest

from serving.encoders.batching import MOST_PADDING, micro_batches


@pytest.mark.parametrize("budget", [64, 4096])
def test_batches_keep_to_the_budget_and_hardly_pad(budget: int) -> None:
    lengths = [random.Random(budget).randint(1, 100) for _ in range(300)]
    batches = list(micro_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(300))
    for batch in batches:
        own = [lengths[index] for index in batch]
        assert len(own) == 1 or len(own) * max(own) <= budget
        assert len(own) * max(own) - sum(own) <= MOST_PADDING
    assert [max(lengths[i] for i in batch) for batch in batches] == sorted(
        (max(lengths[i] for i in batch) for batch in batches), reverse=True
    )


def test_texts_of_about_one_length_share_batches() -> None:
    assert [len(batch) for batch in micro_batches([8] * 20, 64)] == [8, 8, 4]
    assert list(micro_batches([10, 95, 12, 11], 4096)) == [[1], [2, 3, 0]]
