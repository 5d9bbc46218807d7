"""How the native tokenizer splits and normalises text: characters of all classes, patterns, NFC."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from tests.serving.native.native_tokenizer import UNSUPPORTED, NativeError, NativeTokenizer
from tests.serving.native.text_lines import lines

# Unicode without what is alike for thousands of code points, but with its edges.
RANGES = (
    *((0, 0x3500), (0x4DA0, 0x4E10), (0x9FE0, 0xAC80), (0xD780, 0xD800), (0xF8F0, 0x12600)),
    *((0x12F80, 0x13500), (0x143F0, 0x14700), (0x16100, 0x17010), (0x187E0, 0x18D20)),
    *((0x1AFE0, 0x20010), (0x2A6D0, 0x2A710), (0x2B730, 0x2B750), (0x2B810, 0x2B830)),
    *((0x2CE90, 0x2CEC0), (0x2EBD0, 0x2EC00), (0x2EE50, 0x2EE70), (0x2F7F0, 0x2FA30)),
    *((0x31340, 0x31360), (0x323A0, 0x323C0), (0xE0000, 0xE0200), (0x10FFF0, 0x110000)),
)
CHARACTERS = "".join(chr(character) for first, last in RANGES for character in range(first, last))
SPACED = CHARACTERS[:0x3500]  # all of Unicode's spaces are there
ALPHABET = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def by_bytes(*steps: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A token for each byte of what the steps leave."""
    tokenizer = Tokenizer(BPE(ALPHABET, []))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def same_tokens(tokenizer: Tokenizer, library: Path, *texts: str) -> None:
    native = NativeTokenizer(library, tokenizer.to_str())
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert native.encode([text.encode() for text in texts]) == expected


CLASSES = [
    *(rf"\p{{{name}}}" for name in ("L", "M", "N", "P", "S", "Z", "C", "Lu", "Ll", "Lt", "Lm")),
    *(rf"\p{{{name}}}" for name in ("Lo", "Nd", "Sm", "Cf", "Han")),
    *(r"\s", r"\S", r"\d", r"\D", r"\w", r"\W", ".", r"[^\s\p{L}\p{N}]", r"\P{L}", r"\p{^Lu}"),
]


@pytest.mark.parametrize("pattern", CLASSES)
def test_classes_of_characters(pattern: str, tokenizer_library: Path) -> None:
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    same_tokens(by_bytes(split), tokenizer_library, CHARACTERS)


def test_digits(tokenizer_library: Path) -> None:
    for individual in (True, False):
        digits = pre_tokenizers.Digits(individual_digits=individual)
        # What is alone is a digit: it is taken away, so that tokens show where text was split.
        alone = pre_tokenizers.Split(Regex(r"\A.\z"), "removed")
        text = "".join(f"ab{character}" for character in CHARACTERS)
        same_tokens(by_bytes(digits, alone), tokenizer_library, text, "ab12", "1", "½1x")


def test_what_is_beside_added_tokens(tokenizer_library: Path) -> None:
    tokenizer = by_bytes()
    word = AddedToken("word", single_word=True, normalized=False)
    left = AddedToken("left", lstrip=True, normalized=False)
    right = AddedToken("right", rstrip=True, normalized=False)
    tokenizer.add_tokens([word, left, right])
    for name, characters in (("word", CHARACTERS), ("left", SPACED), ("right", SPACED)):
        text = "".join(f"{character}{name}{character}." for character in characters)
        same_tokens(tokenizer, tokenizer_library, text)


PATTERNS = [
    *(
        "ab|abc|[bc]+d?",
        "(?:ab)+c|b",
        "(?:a|b){2,3}",
        "(?:ab){2}|a",
        "(?:ab){2,}|b",
        "a{2,}b|c",
        "(a|bc)*d|b",
    ),
    *("(?i:'s|k|It)|x", "(?i:[sdmt]|ll)", r"\s+(?!\S)|\s+", r"(?<=a)b+|c", r"(?<!\s)a", "a(?=b)"),
    *(
        "^a|b$",
        r"\s^",
        r"\s+$",
        r"\ba\b|\B1",
        r"\Aa|c\z",
        "[^a\\-c]+",
        "[[ab][^\\s1]]",
        r"[^[ab]\s]+",
    ),
    *(r"[\p{L}-]+", r"\x61|\u4e2d", "a++b|a", r"a?+b|1", r"\.|\[|\||\\", "[-a]+", "[+--]"),
    *(r"\d{1,3}(?=(?:\d{3})*\b)", r"[\d.]*\d|\D", "é|[à-ü]+", "(?:(?:a|b)(?:c|1)?)+", "中{1,2}"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, tokenizer_library: Path) -> None:
    rng = random.Random(0)
    characters = "aaabbbcccdd111. '\n\t-[\\|sSk\u017f\u212aItTéüÿ中x+,]"
    texts = [
        "".join(rng.choices(few, k=rng.randrange(1, 14)))
        for few in (characters, "ab", "abc1 ")
        for _ in range(150)
    ]
    for behavior in ("removed", "merged_with_next"):
        split = pre_tokenizers.Split(Regex(pattern), behavior)
        # What is alone is taken away, so that tokens show where text was split.
        alone = pre_tokenizers.Split(Regex(r"\A.\z"), "removed")
        same_tokens(by_bytes(split, alone), tokenizer_library, *texts)


@pytest.mark.parametrize(
    "behavior", ["isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"]
)
@pytest.mark.parametrize("invert", [False, True])
def test_where_what_is_found_goes(behavior: str, invert: bool, tokenizer_library: Path) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab 1", k=rng.randrange(1, 12))) for _ in range(300)]
    pairs = {a + b: 256 + i for i, (a, b) in enumerate(zip("aab1Ġ1", "abb1aa", strict=True))}
    for pattern in ("ab", Regex(r"[a1]"), " "):
        split = pre_tokenizers.Split(pattern, behavior, invert)
        tokenizer = by_bytes(split)
        tokenizer.model = BPE(ALPHABET | pairs, [(pair[0], pair[1]) for pair in pairs])
        same_tokens(tokenizer, tokenizer_library, *texts)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a*?b", "lazy"),
        ("(?:ab)*+c", "groups"),
        ("a*", "no text"),
        ("a|", "no text"),
        ("(a)\\1", "escape"),
        (r"\p{Greek}", "property"),
        ("[a&&b]", "intersection"),
        ("[[:alpha:]]", "POSIX"),
        ("(?i:[^a])", "negated"),
        ("(?i:ß)", "beyond ASCII"),
        ("(?i:ss)", "ligatures"),
        ("(?<=ab)c", "look-behind"),
        ("(?<n>a)", "group"),
        ("(?>a)", "group"),
        ("a{3,2}", "braces"),
        ("(?:(?:(?:a{1}b){99}){99}){99}", "too many"),
        ("(" * 40 + "a" + ")" * 40, "deep"),
    ],
)
def test_patterns_that_are_refused(pattern: str, reason: str, tokenizer_library: Path) -> None:
    tokenizer = json.loads(by_bytes(pre_tokenizers.Split(Regex("a"), "isolated")).to_str())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    with pytest.raises(NativeError, match=reason) as refused:
        NativeTokenizer(tokenizer_library, json.dumps(tokenizer))
    assert refused.value.status == UNSUPPORTED


def test_nfc(tokenizer_library: Path) -> None:
    tokenizer = by_bytes()
    tokenizer.normalizer = normalizers.NFC()
    rng = random.Random(0)
    marks = [character for character in CHARACTERS if unicodedata.category(character)[0] == "M"]
    bases = [character for character in SPACED if character.isalpha()] + list("각가ᄀ")
    texts = [
        normalizers.NFD().normalize_str(CHARACTERS),
        CHARACTERS,
        "".join(f"a{m}" for m in marks),
    ]
    texts += [
        rng.choice(bases) + "".join(rng.choices(marks + list("ᅡᆨa"), k=rng.randrange(6)))
        for _ in range(3000)
    ]
    texts += [text.decode(errors="replace") for text in lines(100, 5, ["x"])]
    texts += ["\u0301" * 1000 + "\u0327" * 1000]
    same_tokens(tokenizer, tokenizer_library, *texts)
