"""The native tokenizer against the tokenizers library: the same tokens, the same text."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from serving.detokenizer import Detokenizer, Vocabulary
from tests.checkpoints import tokenizer as checkpoint_tokenizer
from tests.serving.native.native_tokenizer import NativeTokenizer
from tests.serving.native.text_lines import lines, modules
from tests.serving.native.tokenizer_kinds import Kinds

KINDS = sorted(name.removeprefix("make_") for name in dir(Kinds) if name.startswith("make_"))


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    """A few hundred lines; scripts/compare_tokenizers takes 100,000."""
    code = [line for text in modules() for line in text.split("\n")]
    return list(lines(500, 0, code))


@pytest.fixture(scope="module")
def kinds(texts: list[bytes]) -> Kinds:
    return Kinds.learnt([as_python_reads(text) for text in texts], 2000)


Pair = tuple[Tokenizer, NativeTokenizer]


@pytest.fixture(scope="module")
def both(kinds: Kinds, tokenizer_library: Path) -> Callable[[str], Pair]:
    """A function from a kind to its tokenizer, as the library has it and natively."""

    def make(kind: str) -> Pair:
        tokenizer = kinds.makers[kind]()
        return tokenizer, NativeTokenizer(tokenizer_library, tokenizer.to_str())

    return make


def as_python_reads(text: bytes) -> str:
    return text.decode(errors="replace")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_text(kind: str, texts: list[bytes], both: Callable[[str], Pair]) -> None:
    tokenizer, native = both(kind)
    strings = [as_python_reads(text) for text in texts]
    for special in (False, True):
        encodings = tokenizer.encode_batch_fast(strings, add_special_tokens=special)
        expected = [encoding.ids for encoding in encodings]
        assert native.encode(texts, special=special) == expected
    for ids in expected:
        for skip in (True, False):
            text = tokenizer.decode(ids, skip_special_tokens=skip)
            assert native.decode(ids, skip_special_tokens=skip) == text


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "llama2_metaspace", "gemma", "metaspace"])
def test_text_in_pieces(kind: str, texts: list[bytes], both: Callable[[str], Pair]) -> None:
    tokenizer, native = both(kind)
    vocabulary = Vocabulary(tokenizer)
    rng = random.Random(0)
    sequences = native.encode(texts[:60], special=True)
    # Of any ids, most spell no text: bytes out of order, special tokens, and none at all.
    sequences += [[rng.randrange(300) for _ in range(40)] for _ in range(20)]
    sequences += [[rng.randrange(2400) for _ in range(40)] for _ in range(20)]
    for ids in sequences:
        detokenizer = Detokenizer(vocabulary)
        pieces = [detokenizer.push(token) for token in ids]
        assert native.stream(ids) == [*pieces, detokenizer.finish()]


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "llama2_metaspace", "gemma", "metaspace"])
def test_text_that_goes_on_from_a_prompt(
    kind: str, texts: list[bytes], both: Callable[[str], Pair]
) -> None:
    tokenizer, native = both(kind)
    vocabulary = Vocabulary(tokenizer)
    rng = random.Random(0)
    sequences = [ids for ids in native.encode(texts[:60], special=True) if len(ids) > 1]
    sequences += [[rng.randrange(2400) for _ in range(10)] for _ in range(60)]
    for ids in sequences:
        cut = rng.randrange(1, len(ids))
        detokenizer = Detokenizer(vocabulary, vocabulary.ending(ids[:cut]))
        pieces = [detokenizer.push(token) for token in ids[cut:]]
        assert native.stream(ids, prompt=cut) == [*pieces, detokenizer.finish()]


def test_the_tokenizer_of_the_small_checkpoints(
    texts: list[bytes], tokenizer_library: Path
) -> None:
    tokenizer = checkpoint_tokenizer().backend_tokenizer
    native = NativeTokenizer(tokenizer_library, tokenizer.to_str())
    expected = [tokenizer.encode(as_python_reads(text)).ids for text in texts]
    assert native.encode(texts, special=True) == expected


def test_invalid_utf8_is_what_python_replaces(both: Callable[[str], Pair]) -> None:
    tokenizer, native = both("gpt2")
    edges = bytes.fromhex("00 41 80 8f 90 9f a0 bf c1 c2 df e0 e1 ed ef f0 f1 f4 f5 ff")
    rng = random.Random(0)
    texts = [bytes([a, b]) for a in edges for b in edges]
    texts += [bytes(rng.choices(edges, k=rng.randrange(3, 8))) for _ in range(2000)]
    expected = [
        encoding.ids for encoding in tokenizer.encode_batch_fast([*map(as_python_reads, texts)])
    ]
    assert native.encode(texts) == expected


def test_long_words(both: Callable[[str], Pair]) -> None:
    texts = [b"a" * 3000, b" " * 3000 + b"x", b"\n" * 500, "中文".encode() * 500, b"=-" * 900]
    for kind in ("llama3", "gemma", "deepseek3"):
        tokenizer, native = both(kind)
        assert native.encode(texts) == [
            tokenizer.encode(text.decode(), add_special_tokens=False).ids for text in texts
        ]
