"""Prompt look-up against a search of the whole text."""

import numpy as np
import pytest

from serving.decoding import Limits, Sequence
from serving.prompt_lookup import PromptLookup
from serving.sampling import SamplingParameters
from tests.serving.counting_engine import VOCAB


def make_sequence(ids: list[int], new: int = 200) -> Sequence:
    limits = Limits(len(ids) + new, None, 0, (), ())
    return Sequence(0, np.array(ids), SamplingParameters(), limits, None)


def extend(sequence: Sequence, token: int) -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[token] = 1
    assert sequence.extend(logits).token_id == token


def search(ids: list[int]) -> tuple[int, int]:
    """The longest match of the newest tokens, at most 3, and where its last occurrence ends."""
    for n in (3, 2, 1):
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - n : end] == ids[-n:]:
                return n, end
    return 0, 0


@pytest.mark.parametrize("letters", [1, 2, 4, 20])
def test_finds_what_a_search_of_the_whole_text_finds(letters: int) -> None:
    random = np.random.default_rng(letters)
    ids = random.integers(0, letters, 5).tolist()
    sequence = make_sequence(ids)
    lookup = PromptLookup(sequence)
    lengths = set()
    for token in random.integers(0, letters, 150).tolist():
        extend(sequence, token)
        ids.append(token)
        if token % 3 == 2:
            continue  # several tokens may come between two look-ups
        length, end = search(ids)
        assert lookup.match() == length
        lengths.add(length)
        if length:
            expected = (ids[end:] * 9)[:9]
            assert lookup.propose(9).ids.tolist() == expected
    assert letters < 4 or len(lengths) > 2


def test_a_first_token_matches_nothing() -> None:
    assert PromptLookup(make_sequence([7])).match() == 0


def test_a_copy_past_the_end_repeats_itself() -> None:
    lookup = PromptLookup(make_sequence([9, 1, 2, 3, 1, 2, 3]))
    assert lookup.match() == 3
    assert lookup.propose(7).ids.tolist() == [1, 2, 3, 1, 2, 3, 1]
