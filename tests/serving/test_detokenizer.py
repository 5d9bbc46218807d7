"""The incremental detokeniser against the tokenizers library's own decode."""

import random
from collections.abc import Iterable, Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from serving.detokenizer import REPLACEMENT, Detokenizer, StopStrings, Vocabulary

TEXTS = [
    "Hello world, this is a test.  Two spaces,\n\ttabs and   more   spaces ",
    " leading space",
    "héllo wörld ñandú façade",
    "Привет, мир! Это проверка.",
    "你好，世界。今天天气很好。",  # noqa: RUF001 - that is how it is written
    "こんにちは世界、元気ですか",
    "안녕하세요 세계",
    "مرحبا بالعالم كيف حالك",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "emoji 😀😃 family 👨‍👩‍👧‍👦 flag 🇩🇪 skin 👍🏽!",
    "mixed: 价格 €5, ½ kg, naïve 🙂 done",
    "def f(x):\n    return x ** 2\n",
    "literal replacement \ufffd inside",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS[:4], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def sentencepiece_style(strip: bool = True) -> Tokenizer:
    """As Llama 2's: ▁ for spaces, bytes for characters that the vocabulary lacks."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = spaces
    trained.train_from_iterator(
        TEXTS[:4], BpeTrainer(vocab_size=250, show_progress=False, special_tokens=["<unk>"])
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    names += [name for name, _ in learned if name not in names]
    vocab = {name: index for index, name in enumerate(names)}
    merges = [tuple(pair) for pair in _merges(trained)]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * strip)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = sentencepiece_style()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    words = [
        "[UNK]",
        "[CLS]",
        "hello",
        "wor",
        "##ld",
        "##s",
        ",",
        ".",
        "!",
        "don",
        "'",
        "t",
        "##a",
        "b",
    ]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]"])
    return tokenizer


def _merges(tokenizer: Tokenizer) -> Iterable[list[str]]:
    import json

    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


TOKENIZERS = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece_style,
    "sentencepiece_no_strip": lambda: sentencepiece_style(strip=False),
    "metaspace": metaspace,
    "word_piece": word_piece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = TOKENIZERS[request.param]()
    return made


def pieces(tokenizer: Tokenizer, ids: Iterable[int], prompt: Sequence[int] = ()) -> list[str]:
    vocabulary = Vocabulary(tokenizer)
    detokenizer = Detokenizer(vocabulary, vocabulary.ending(prompt))
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_for_texts(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_goes_on_from_any_part_of_it(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    for cut in range(1, len(ids)):
        prompt = tokenizer.decode(ids[:cut])
        if not prompt.endswith(REPLACEMENT):  # within a character there is no text to go on from
            rest = "".join(pieces(tokenizer, ids[cut:], ids[:cut]))
            assert prompt + rest == tokenizer.decode(ids)


def test_a_text_behind_a_special_token_begins_there() -> None:
    tokenizer = sentencepiece_style()
    ids = tokenizer.encode("Hello world").ids
    beginning = tokenizer.token_to_id("<s>")
    assert pieces(tokenizer, ids, [beginning]) == pieces(tokenizer, ids)


def test_pieces_add_up_for_random_ids(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size() + 3  # a model's vocabulary may be larger: silent ids
    for seed in range(400):
        source = random.Random(seed)
        ids = [source.randrange(size) for _ in range(source.randrange(1, 60))]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_pieces_add_up_for_random_byte_runs() -> None:
    tokenizer = sentencepiece_style()
    byte_ids = sorted(Vocabulary(tokenizer).bytes)
    assert len(byte_ids) == 256
    for seed in range(400):
        source = random.Random(seed)
        ids: list[int] = []
        for _ in range(source.randrange(1, 6)):
            good = source.choice("aé€😀 ").encode()
            bad = bytes(source.randrange(256) for _ in range(source.randrange(4)))
            ids += [byte_ids[byte] for byte in source.choice([good, good + bad, bad + good])]
            ids += source.sample(range(tokenizer.get_vocab_size()), source.randrange(2))
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


@pytest.mark.parametrize("text", [text for text in TEXTS if REPLACEMENT not in text])
def test_no_piece_has_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert not any(REPLACEMENT in piece for piece in pieces(tokenizer, ids))


def test_text_streams_and_is_not_kept_for_the_end() -> None:
    for tokenizer in (byte_level(), sentencepiece_style()):
        ids = tokenizer.encode("Hello world, this is a test.").ids
        assert pieces(tokenizer, ids)[-1] == ""
        assert sum(bool(piece) for piece in pieces(tokenizer, ids)) >= len(ids) - 1


def test_redecoding_is_bounded() -> None:
    class Counting(Vocabulary):
        longest = 0

        def decode(self, token_ids: list[int]) -> str:  # type: ignore[override]
            self.longest = max(self.longest, len(token_ids))
            return super().decode(token_ids)

    vocabulary = Counting(byte_level())
    detokenizer = Detokenizer(vocabulary)
    for token_id in vocabulary.tokenizer.encode(" ".join(TEXTS[:-1]) * 5).ids:
        detokenizer.push(token_id)
    assert vocabulary.longest <= 12


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["END"], "one END two", "one "),
        (["END"], "one EN two", "one EN two"),
        (["\n\n", "###"], "a\nb###c\n\n", "a\nb"),
        (["abcd", "bc"], "xabcdx", "xa"),
        (["aab"], "aaab!", "a"),
        (["終わり"], "これで終わりです", "これで"),
        ([], "anything", "anything"),
    ],
)
def test_stop_strings_are_found_across_any_pieces(
    stops: list[str], text: str, expected: str
) -> None:
    source = random.Random(0)
    for _ in range(50):
        matcher, out, rest = StopStrings(stops), "", text
        while rest and not matcher.found:
            size = source.randrange(1, len(rest) + 1)
            out += matcher.push(rest[:size])
            rest = rest[size:]
            assert expected.startswith(out) or not stops, "text was given out too early"
        out += matcher.finish()
        assert out == expected
        assert matcher.found == (expected != text)
