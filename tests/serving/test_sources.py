"""Sources and beginnings of outputs as the tokenizers of multilingual models make them."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import MBart50Tokenizer, NllbTokenizer

from serving.bundle import SpecialTokens
from serving.errors import UserError
from serving.prompts import PromptEncoder
from serving.sources import SourcePrompts

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "▁hello", "▁world"]


def prompts_of(tokenizer: object) -> PromptEncoder:
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    assert isinstance(backend, Tokenizer)
    return PromptEncoder(backend.get_vocab_size(), backend)


def made(kind: type, **languages: str) -> object:
    if kind is NllbTokenizer:  # pairs of characters; what isn't among the words is unknown
        return kind(vocab={word: at for at, word in enumerate(WORDS)}, **languages)
    return kind(vocab=[(word, -float(at)) for at, word in enumerate(WORDS)], **languages)


@pytest.mark.parametrize(
    ("kind", "own", "other", "target"),
    [
        (MBart50Tokenizer, "en_XX", "fr_XX", "de_DE"),
        (NllbTokenizer, "eng_Latn", "fra_Latn", "deu_Latn"),
    ],
)
def test_languages_are_those_of_the_tokenizer(
    kind: type, own: str, other: str, target: str
) -> None:
    tokenizer = made(kind, src_lang=own, tgt_lang=own)
    expected = made(kind, src_lang=other, tgt_lang=own)("hello world").input_ids  # type: ignore[operator]
    prompts = prompts_of(tokenizer)
    tokens = SpecialTokens(eos=(2,), decoder_start=2)
    sources = SourcePrompts(prompts, tokens, 64)
    assert sources.source("hello world", "refuse", other).tolist() == expected
    assert sources.source("hello world", "refuse").tolist() != expected
    german = tokenizer.convert_tokens_to_ids(target)  # type: ignore[attr-defined]
    start, forced = sources.beginning(None, target)
    assert (start.tolist(), forced) == ([2], german)


def test_an_output_goes_on_from_a_language_where_the_checkpoint_has_it_so() -> None:
    tokenizer = made(MBart50Tokenizer, src_lang="en_XX", tgt_lang="ro_RO")
    ids = tokenizer.convert_tokens_to_ids  # type: ignore[attr-defined]
    tokens = SpecialTokens(eos=(2,), decoder_start=ids("ro_RO"))
    sources = SourcePrompts(prompts_of(tokenizer), tokens, 64)
    assert sources.beginning(None, None)[0].tolist() == [ids("ro_RO")]
    start, forced = sources.beginning(None, "de_DE")
    assert (start.tolist(), forced) == ([ids("de_DE")], None)


def test_a_cut_source_keeps_its_ending() -> None:
    tokenizer = made(MBart50Tokenizer, src_lang="en_XX", tgt_lang="ro_RO")
    sources = SourcePrompts(prompts_of(tokenizer), SpecialTokens(eos=(2,)), 5)
    whole = tokenizer("hello world hello world hello").input_ids  # type: ignore[operator]
    cut = sources.source("hello world hello world hello", "truncate")
    assert len(whole) > 5
    expected = tokenizer(  # type: ignore[operator]
        "hello world hello world hello", truncation=True, max_length=5
    ).input_ids
    assert cut.tolist() == expected


def test_a_word_is_no_language() -> None:
    tokenizer = made(MBart50Tokenizer, src_lang="en_XX", tgt_lang="ro_RO")
    sources = SourcePrompts(prompts_of(tokenizer), SpecialTokens(decoder_start=2), 5)
    assert tokenizer.backend_tokenizer.token_to_id("▁hello") is not None  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match="no token for the language '▁hello': this model knows af_ZA"
    ):
        sources.beginning(None, "▁hello")


def test_a_source_of_nothing_but_endings_is_cut_too() -> None:
    sources = SourcePrompts(PromptEncoder(50), SpecialTokens(eos=(2,)), 4)
    assert sources.source([2] * 9, "truncate").tolist() == [2] * 4
    assert sources.source([5, 6, 7, 8, 9, 2, 2], "truncate").tolist() == [5, 6, 2, 2]


def test_a_decoder_prompt_comes_behind_what_is_forced() -> None:
    sources = SourcePrompts(PromptEncoder(50), SpecialTokens(decoder_start=3, forced_bos=4), 8)
    start, forced = sources.beginning([7, 8], None)
    np.testing.assert_array_equal(start, [3, 4, 7, 8])
    assert forced is None


def test_without_a_start_nothing_can_be_generated() -> None:
    sources = SourcePrompts(PromptEncoder(50), SpecialTokens(), 8)
    with pytest.raises(UserError, match="decoder_start_token_id"):
        sources.beginning(None, None)
