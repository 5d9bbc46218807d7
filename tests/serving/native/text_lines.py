"""Lines to tokenise: code, many scripts, emoji, odd spaces, special tokens and invalid UTF-8."""

# ruff: noqa: RUF001 - characters that look like others are what this is about

import random
import sysconfig
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

SPECIAL = (
    *("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>"),
    *(
        "[INST]",
        "<mask>",
        "<tool_call>",
        "<div>",
        "<0x41>",
        "<｜begin▁of▁sentence｜>",
        "<|im",
        "<a b>",
    ),
)
SPACES = (" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\x85", "▁")
CONTRACTIONS = ("'s", "'S", "'LL", "'re", "'\u017f", "'T", "'d've", "\u2019s")
EMOJI = ("😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "🏳️‍🌈", "1️⃣", "\U0001fae8")
MARKS = tuple(map(chr, (*range(0x300, 0x345), 0x345, 0x591, 0x64B, 0x93C, 0x9BE, 0x1DC4, 0x20D0)))
JAMO = tuple(map(chr, (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))


def modules() -> Iterator[str]:
    """The modules of Python's standard library, in order."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


@cache
def scripts() -> dict[str, tuple[str, ...]]:
    """Letters, marks and digits by the first word of their names, a script's in most cases."""
    found: dict[str, list[str]] = {}
    for code_point in range(0x30000):
        character = chr(code_point)
        if unicodedata.category(character)[0] in "LMN":
            name = unicodedata.name(character, "").partition(" ")[0]
            found.setdefault(name, []).append(character)
    return {name: tuple(letters) for name, letters in found.items() if len(letters) > 20}


def word(rng: random.Random) -> str:
    """A word of one script, or something else that may stand in a text."""
    kind = rng.randrange(12)
    if kind < 6:
        letters = scripts()[rng.choice(tuple(scripts()))]
        # Neighbours in the table, so that words recur.
        start = rng.randrange(len(letters))
        near = letters[start : start + 12]
        return "".join(rng.choices(near, k=rng.randrange(1, 9)))
    if kind == 6:
        return str(rng.randrange(10 ** rng.randrange(1, 12)))
    if kind == 7:
        return "".join(rng.choices(EMOJI + CONTRACTIONS, k=rng.randrange(1, 4)))
    if kind == 8:
        marks = "".join(rng.choices(MARKS, k=rng.randrange(1, 5)))
        return rng.choice("aeoAUnсиか각가") + marks + rng.choice(("", "b", "\u0327"))
    if kind == 9:
        return "".join(rng.choices(JAMO, k=rng.randrange(1, 7)))
    if kind == 10:
        return rng.choice(SPECIAL)
    return "".join(chr(rng.choice(PLANES)(rng)) for _ in range(rng.randrange(1, 6)))


PLANES = (
    lambda rng: rng.randrange(0x80),
    lambda rng: rng.randrange(0x800),
    lambda rng: rng.randrange(0x800, 0xD800),
    lambda rng: rng.randrange(0xE000, 0x20000),
    lambda rng: rng.randrange(0x20000, 0x110000),
)


def mixed(rng: random.Random) -> str:
    """Words of several scripts, with spaces or without."""
    parts = []
    for _ in range(rng.randrange(1, 9)):
        parts.append(word(rng))
        parts.append(rng.choice(SPACES) if rng.random() < 0.7 else "")
    return rng.choice(("", " ")) + "".join(parts)


def damaged(rng: random.Random, line: bytes) -> bytes:
    """The line with some bytes lost, doubled or changed."""
    text = bytearray(line or b"\xe2\x96")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        lead = rng.choice(b"\x80\xbf\xc0\xc3\xe0\xed\xe2\xf0\xf4\xf5\xff")
        text[at : at + rng.randrange(3)] = bytes([lead][: rng.randrange(2)])
    return bytes(text)


def lines(count: int, seed: int, code: Sequence[str]) -> Iterator[bytes]:
    """So many lines: half are lines of ``code``, and one in ten is damaged."""
    rng = random.Random(seed)
    for _ in range(count):
        line = rng.choice(code) if rng.random() < 0.5 else mixed(rng)
        if rng.random() < 0.1:
            line = line + "\n" + mixed(rng)
        text = line.encode()
        yield damaged(rng, text) if rng.random() < 0.1 else text
