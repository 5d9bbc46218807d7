"""Bad words: what transformers forbids is forbidden, and texts in all the ways they are written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

from serving import UserError
from serving.bad_words import BadWords, spellings
from serving.constraints import Constraint
from serving.decoding import Limits, Sequence
from serving.draft_model import DraftModel
from serving.sampling import SamplingParameters, penalize
from tests.serving.counting_engine import CountingEngine
from tests.serving.test_constraints import metaspace, random_model
from tests.serving.test_detokenizer import byte_level, sentencepiece_style, word_piece
from tests.serving.test_generation import text_model

VOCAB = 5
# So few ids that the beginnings of words are often what just came.
ids = st.lists(st.integers(0, VOCAB - 1), max_size=6)
words = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), min_size=1)


@settings(max_examples=300, deadline=None)
@given(words=words, prompt=ids, generated=ids)
def test_the_same_ids_are_forbidden_as_by_transformers(
    words: list[list[int]], prompt: list[int], generated: list[int]
) -> None:
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    so_far = torch.tensor([prompt + generated], dtype=torch.long)
    expected = NoBadWordsLogitsProcessor(words)(so_far, torch.from_numpy(logits)[None])
    parameters = SamplingParameters(bad_words=BadWords(words))
    arrays = (np.array(prompt, np.int64), np.array(generated, np.int64))
    np.testing.assert_array_equal(penalize(logits, parameters, *arrays), expected[0].numpy())


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style, metaspace, word_piece])
def test_a_text_is_forbidden_however_it_is_written(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    for word in ("world", "Two spaces", "!", "façade"):
        spelled = spellings(tokenizer, word)
        for text in (word, f"\n{word}", f"test {word}", f"test {word}, a test"):
            written = tokenizer.encode(text, add_special_tokens=False).ids
            starts = range(len(written))
            assert any(tuple(written[i : i + len(s)]) == s for s in spelled for i in starts), text


def test_a_space_in_front_is_part_of_a_word() -> None:
    tokenizer = byte_level()
    (spelled,) = spellings(tokenizer, " world")
    assert spelled == tuple(tokenizer.encode(" world").ids)
    assert spelled in spellings(tokenizer, "world")


def test_a_text_goes_on_without_the_word() -> None:
    model = text_model()
    whole = model.generate("Hello", max_new_tokens=40).text
    word = whole[10:13]
    other = model.generate("Hello", max_new_tokens=40, bad_words=word).text
    at = whole.index(word) + 2
    assert whole[:at] == other[:at]
    assert word not in other
    assert len(other) == 40
    assert model.generate("Hello", max_new_tokens=40, bad_words=["~", word]).text == other


def test_the_beginning_of_a_word_may_be_in_the_prompt() -> None:
    model = text_model()
    plain = model.generate([7, 8], max_new_tokens=3).token_ids
    word = [7, 8, plain[0]]
    assert model.generate([7, 8], max_new_tokens=1, bad_words_ids=[word]).token_ids != plain[:1]
    same = model.generate([7, 8], max_new_tokens=3, bad_words_ids=[[6, *word[1:]]])
    assert same.token_ids == plain


def test_an_end_of_text_is_no_word() -> None:
    ids = [1, 2, 3]
    (first,) = text_model().generate(ids, max_new_tokens=1).token_ids
    model = text_model(eos=(first,))
    ended = model.generate(ids, max_new_tokens=5, bad_words_ids=[[first]])
    assert ended.finish_reason == "stop"
    held = model.generate(ids, max_new_tokens=5, bad_words_ids=[[first]], ignore_eos=True)
    assert first not in held.token_ids


def test_a_constraint_and_bad_words_hold_together() -> None:
    model = random_model(byte_level())
    options: Any = {"constraint": Constraint.choice(["left", "right"]), "max_new_tokens": 20}
    plain = model.generate([5], **options).text
    (other,) = {"left", "right"} - {plain}
    assert model.generate([5], bad_words=other, **options).text == plain
    assert model.generate([5], bad_words=plain[0], **options).text == other


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"num_beams": 2}])
def test_words_that_leave_no_token_are_an_error(options: Any) -> None:
    model = text_model()
    everything = [[token_id] for token_id in range(model.engine.vocab_size)]
    with pytest.raises(UserError, match="No token may come next"):
        model.generate([5], max_new_tokens=2, bad_words_ids=everything, **options)


def test_a_draft_may_have_what_bad_words_forbid() -> None:
    """They could forbid all that a constraint leaves of a smaller vocabulary."""
    everything = SamplingParameters(1.0, bad_words=BadWords([[i] for i in range(9)]))
    sequence = Sequence(0, np.array([5, 6]), everything, Limits(100, None, 0, (), ()), None)
    draft = DraftModel(CountingEngine(vocab=9), vocab_size=64, chunk=8).open(sequence)
    assert len(draft.propose(4).ids) == 4
