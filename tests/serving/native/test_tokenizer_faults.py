"""Tokenizers that the native runtime refuses, files that are damaged, and memory that runs out."""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.serving.native.fuzz.seeds import BYTES, CHARACTERS, vocabulary
from tests.serving.native.native_tokenizer import (
    DAMAGED,
    OK,
    OUT_OF_MEMORY,
    UNSUPPORTED,
    NativeError,
    NativeTokenizer,
)
from tests.serving.native.tokenizer_kinds import Kinds


@pytest.fixture(scope="module")
def kinds() -> Kinds:
    return Kinds(vocabulary(BYTES), vocabulary(CHARACTERS))


UNKNOWN_PARTS: dict[str, Callable[[Tokenizer], None]] = {
    "another normalizer": lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
    "another pre-tokenizer": lambda t: setattr(
        t, "pre_tokenizer", pre_tokenizers.BertPreTokenizer()
    ),
    "decoder that": lambda t: setattr(t, "decoder", decoders.WordPiece()),
    "byte-pair encoding": lambda t: setattr(t, "model", models.Unigram([("a", 0.0)])),
    "dropout": lambda t: setattr(t, "model", models.BPE({"a": 0}, [], dropout=0.1)),
    "suffixes": lambda t: setattr(t, "model", models.BPE({"a": 0}, [], end_of_word_suffix="</w>")),
    "after turning it to bytes": lambda t: setattr(
        t,
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Digits()]),
    ),
    "isn't a text and tokens": lambda t: setattr(
        t, "post_processor", processors.TemplateProcessing(single="$A $A", pair="$A $B")
    ),
}


@pytest.mark.parametrize("reason", UNKNOWN_PARTS)
def test_unknown_parts_are_refused(reason: str, kinds: Kinds, tokenizer_library: Path) -> None:
    tokenizer = kinds.make_gpt2()
    UNKNOWN_PARTS[reason](tokenizer)
    with pytest.raises(NativeError, match=reason) as refused:
        NativeTokenizer(tokenizer_library, tokenizer.to_str())
    assert refused.value.status == UNSUPPORTED


def without_vocabulary(document: dict[str, Any]) -> None:
    del document["model"]["vocab"]


def sparse(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["zzz"] = 2**31


def twice(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["zzz"] = 0


def unknown_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["a", "zzz"])


def three_part_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"].append("a b c")


def added_without_id(document: dict[str, Any]) -> None:
    del document["added_tokens"][0]["id"]


def added_elsewhere(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["id"] = 3


DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "has no vocabulary": without_vocabulary,
    "ids are sparse": sparse,
    "two tokens of id 0": twice,
    "third": unknown_merge,
    "of two tokens": three_part_merge,
    "has no id": added_without_id,
    "contradicts the vocabulary": added_elsewhere,
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damage_is_noticed(reason: str, kinds: Kinds, tokenizer_library: Path) -> None:
    document = json.loads(kinds.make_gpt2().to_str())
    DAMAGES[reason](document)
    with pytest.raises(NativeError, match=reason) as noticed:
        NativeTokenizer(tokenizer_library, json.dumps(document))
    assert noticed.value.status == DAMAGED


def test_json_that_ends_early(kinds: Kinds, tokenizer_library: Path) -> None:
    text = kinds.make_llama3().to_str()
    for end in range(0, len(text) - 1, 97):
        with pytest.raises(NativeError) as noticed:
            NativeTokenizer(tokenizer_library, text[:end])
        assert noticed.value.status == DAMAGED


@pytest.mark.parametrize("kind", ["qwen2", "deepseek2", "llama2_metaspace", "added", "roberta"])
def test_every_allocation_may_fail(kind: str, kinds: Kinds, tokenizer_library: Path) -> None:
    library = ctypes.CDLL(str(tokenizer_library))
    document = kinds.makers[kind]().to_str().encode()
    # Long enough that buffers grow, and with something to mend, normalise and split.
    text = ("ab é中e\u0301 self <s>\n" * 40).encode() + b"\xff"
    held = ctypes.c_size_t()
    statuses: list[int] = []
    while OK not in statuses:
        status = library.harness_fail(
            *(document, ctypes.c_size_t(len(document)), text, ctypes.c_size_t(len(text))),
            *(ctypes.c_size_t(len(statuses)), ctypes.byref(held)),
        )
        assert held.value == 0
        statuses.append(status)
    assert set(statuses[:-1]) == {OUT_OF_MEMORY}
    assert len(statuses) > 30
