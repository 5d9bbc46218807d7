"""The draft model's own cache: right whatever became of its drafts."""

import math
from typing import Any

import numpy as np
import pytest

from serving.bundle import SpecialTokens
from serving.decoding import Limits, Sequence
from serving.draft_model import DraftModel
from serving.generation import Model
from serving.sampling import SamplingParameters
from tests.serving.counting_engine import VOCAB, CountingEngine, continuation


def make_sequence(ids: list[int], sampling: SamplingParameters | None = None) -> Sequence:
    limits = Limits(len(ids) + 200, None, 0, (), ())
    return Sequence(0, np.array(ids), sampling or SamplingParameters(), limits, None)


def extend(sequence: Sequence, tokens: list[int]) -> None:
    for token in tokens:
        logits = np.full(VOCAB, -np.inf, np.float32)
        logits[token] = 0
        assert sequence.extend(logits).token_id == token


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_drafts_continue_the_text_after_any_number_of_accepted_tokens(chunk: int) -> None:
    random = np.random.default_rng(chunk)
    drafters = DraftModel(CountingEngine(slots=2, capacity=300), VOCAB, chunk)
    ids = [[3, 1, 4, 1, 5], [9]]
    sequences = [make_sequence(start) for start in ids]
    slots = [drafters.open(sequence) for sequence in sequences]
    for _ in range(40):
        i, length = int(random.integers(2)), int(random.integers(1, 6))
        assert slots[i].match() == 1
        drafted = slots[i].propose(length).ids.tolist()
        assert drafted == continuation(ids[i], length)
        accepted = drafted[: random.integers(length + 1)]
        # The next token may by chance be the one that was drafted, and later ones be others.
        new = [*accepted, *random.integers(0, VOCAB, random.integers(1, 4)).tolist()]
        extend(sequences[i], new)
        ids[i] += new


def test_slots_are_taken_and_given_back() -> None:
    drafters = DraftModel(CountingEngine(slots=2), VOCAB, 512)
    first, second = (drafters.open(make_sequence([token])) for token in (1, 2))
    assert drafters.free_slots == []
    first.close()
    third = drafters.open(make_sequence([8, 8, 8]))
    assert third.propose(3).ids.tolist() == continuation([8, 8, 8], 3)
    assert second.propose(3).ids.tolist() == continuation([2], 3)


def test_a_text_that_outgrows_the_draft_model_gets_no_drafts() -> None:
    drafters = DraftModel(CountingEngine(slots=2, capacity=50), VOCAB, 512)
    assert drafters.open(make_sequence([1] * 19)).match() == 1
    assert drafters.open(make_sequence([1] * 20)).match() == 0


@pytest.mark.parametrize("sampling", [SamplingParameters(), SamplingParameters(temperature=1.0)])
@pytest.mark.parametrize("vocab", [40, 64, 100])
def test_vocabularies_may_be_padded_differently(vocab: int, sampling: SamplingParameters) -> None:
    """Qwen2.5 has 151,936 or 152,064 logits for the same tokens, as the model's size goes."""
    drafters = DraftModel(CountingEngine(slots=4, capacity=100, vocab=vocab), VOCAB, 512)
    draft = drafters.open(make_sequence([5, 30, 9], sampling)).propose(20)
    assert draft.ids.max() < min(vocab, VOCAB)
    if draft.probabilities is not None:
        assert draft.probabilities.shape == (20, VOCAB)
        np.testing.assert_allclose(draft.probabilities.sum(1), 1)
        assert not draft.probabilities[:, vocab:].any()
    follows = drafters.open(make_sequence([5, 63])).match()
    assert follows == (vocab > 63)


def test_with_a_seed_a_draft_takes_no_random_numbers() -> None:
    drafters = DraftModel(CountingEngine(slots=2), VOCAB, 512)
    sequence = make_sequence([5, 30, 9], SamplingParameters(temperature=1.0, seed=1))
    assert drafters.open(sequence).propose(5).probabilities is None
    assert sequence.random.random() == np.random.default_rng(1).random()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_model_without_numbers_changes_no_text(value: float, temperature: float) -> None:
    class Broken(CountingEngine):
        def step(self, *arguments: Any) -> Any:
            return np.full_like(super().step(*arguments), value)

    draft = Broken(slots=2, capacity=100)
    model = Model(CountingEngine(slots=2, capacity=100), SpecialTokens(), draft=draft)
    options = {"temperature": temperature, "top_k": 1, "speculation": "draft"}
    result = model.generate([3, 1, 4], max_new_tokens=20, **options)  # type: ignore[arg-type]
    assert draft.steps
    assert result.token_ids == continuation([3, 1, 4], 20)
