#!/usr/bin/env python3
"""Write the Unicode tables of the native runtime: serving/native/src/unicode_*_table.h.

Tokenizers split text by Unicode's categories, and some normalise it (NFC). The tables are those of
the `tokenizers` library, so that the same text gets the same tokens: categories of Unicode 16, as
its regular expressions have them, and the compositions that its normaliser knows, those of Unicode
9. So this needs `pip install unicodedata2==16.0.0`.

A table of a byte for each code point has three stages: blocks of 16 code points, of which only the
different ones are stored, groups of 32 blocks, likewise, and the group of each 512 code points.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click
import unicodedata2 as unicodedata  # type: ignore[import-not-found]
from tokenizers import normalizers

VERSION = "16.0.0"
SOURCES = Path(__file__).parents[1] / "serving" / "native" / "src"
CODE_POINTS = range(0x110000)
SURROGATES = range(0xD800, 0xE000)
HANGUL = range(0xAC00, 0xD7A4)  # composed by arithmetic

CATEGORIES = (
    *("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No"),
    *("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"),
    *("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"),
)
BLOCK_BITS, GROUP_BITS = 4, 5  # the smallest
BLOCK_MASK, GROUP_MASK = (1 << BLOCK_BITS) - 1, (1 << GROUP_BITS) - 1
# What unicode_nfc.c calls a character that has class 0 and may still change.
UNSTABLE = 255

HAN_NAMES = (
    *("CJK UNIFIED IDEOGRAPH-", "CJK COMPATIBILITY IDEOGRAPH-", "CJK RADICAL", "KANGXI RADICAL"),
    *("HANGZHOU NUMERAL", "VIETNAMESE ALTERNATE READING"),
)

HEADER = f"""/* Of Unicode {VERSION}. Written by scripts/unicode_tables.py. */
#pragma once

#include <stdint.h>

/* clang-format off */
"""


@click.command(help=__doc__)
def main() -> None:
    if unicodedata.unidata_version != VERSION:
        raise click.ClickException(f"unicodedata2 has Unicode {unicodedata.unidata_version}")
    write("unicode_categories_table.h", categories())
    write("unicode_nfc_table.h", normalisation())


def write(name: str, parts: Iterable[str]) -> None:
    (SOURCES / name).write_text(HEADER + "\n".join(parts) + "\n/* clang-format on */\n")


def categories() -> Iterator[str]:
    numbers = {category: number for number, category in enumerate(CATEGORIES)}
    yield f"enum {{ {', '.join(f'CATEGORY_{name.upper()}' for name in CATEGORIES)} }};"
    yield from three_stages(
        "category", [numbers[unicodedata.category(chr(c))] for c in CODE_POINTS]
    )
    yield from ranges("han", (c for c in CODE_POINTS if is_han(c)))


def is_han(code_point: int) -> bool:
    """Whether the Script property is Han, which Python's data has as names only."""
    return unicodedata.name(chr(code_point), "").startswith(HAN_NAMES) or code_point in (
        0x3005,
        0x3007,
        0x303B,
        0x16FE2,
        0x16FE3,
    )


def normalisation() -> Iterator[str]:
    pairs = {c: mapping for c in CODE_POINTS if (mapping := decomposition(c))}
    composed = {
        mapping: c
        for c, mapping in pairs.items()
        if len(mapping) == 2 and unicodedata.normalize("NFC", chr(c)) == chr(c)
    }
    seconds = {second for _, second in composed} | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}

    def combining(code_point: int) -> int:
        if known_class := combining_class(code_point):
            return known_class
        changes = code_point in pairs and pairs[code_point] not in composed
        return UNSTABLE if changes or code_point in seconds else 0

    yield "/* Canonical combining class; 255: class 0, but not always the same in NFC. */"
    yield from three_stages("combining", [combining(c) for c in CODE_POINTS])
    yield "/* Canonical decompositions by code point; the second is 0 where there is only one. */"
    rows = [f"{{{c:#x}, {m[0]:#x}, {m[1] if len(m) > 1 else 0:#x}}}" for c, m in pairs.items()]
    yield "static const struct {\n    uint32_t code_point, first, second;"
    yield f"}} decompositions[] = {{\n{wrapped(rows)}\n}};"
    order = list(pairs)
    yield "/* Those that NFC composes: their places above, ordered by first and second. */"
    yield array("compositions", [order.index(composed[mapping]) for mapping in sorted(composed)])


def decomposition(code_point: int) -> tuple[int, ...]:
    """One step of the canonical decomposition, empty if there is none."""
    text = unicodedata.decomposition(chr(code_point))
    if not text or text.startswith("<") or code_point in HANGUL:
        return ()
    is_known = nfd(chr(code_point)) == unicodedata.normalize("NFD", chr(code_point))
    return tuple(int(part, 16) for part in text.split()) if is_known else ()


def combining_class(code_point: int) -> int:
    """The class, or 0 where tokenizers' normaliser doesn't know it: it doesn't move the mark."""
    value = int(unicodedata.combining(chr(code_point)))
    if not value:
        return 0
    text = f"a{chr(code_point)}\u0334" if value > 1 else f"a\u0345{chr(code_point)}"
    return value if nfd(text) == unicodedata.normalize("NFD", text) else 0


nfd: Callable[[str], str] = normalizers.NFD().normalize_str


def three_stages(name: str, values: Sequence[int]) -> Iterator[str]:
    """A table of bytes: ``{name}_of(code_point)``."""
    groups, blocks = staged(values, BLOCK_BITS)
    top, groups = staged(groups, GROUP_BITS)
    yield array(f"{name}_groups", top)
    yield array(f"{name}_blocks", groups)
    yield array(f"{name}_values", blocks)
    yield f"""static inline uint8_t {name}_of(uint32_t code_point) {{
    const uint32_t group = {name}_groups[code_point >> {BLOCK_BITS + GROUP_BITS}];
    const uint32_t place = group << {GROUP_BITS} | (code_point >> {BLOCK_BITS} & {GROUP_MASK});
    return {name}_values[{name}_blocks[place] << {BLOCK_BITS} | (code_point & {BLOCK_MASK})];
}}"""


def staged(values: Sequence[int], bits: int) -> tuple[list[int], list[int]]:
    """The number of each block of ``2 ** bits`` values, and the different blocks."""
    size = 1 << bits
    numbers: dict[tuple[int, ...], int] = {}
    index = [
        numbers.setdefault(tuple(values[i : i + size]), len(numbers))
        for i in range(0, len(values), size)
    ]
    return index, [value for block in numbers for value in block]


def array(name: str, values: Sequence[int]) -> str:
    kind = "uint8_t" if max(values) < 256 else "uint16_t"
    return f"static const {kind} {name}[] = {{\n{wrapped(map(str, values))}\n}};"


def ranges(name: str, members: Iterable[int]) -> Iterator[str]:
    """An array of first and last code points."""
    found: list[list[int]] = []
    for member in members:
        if found and found[-1][1] == member - 1:
            found[-1][1] = member
        else:
            found.append([member, member])
    rows = [f"{{{first:#x}, {last:#x}}}" for first, last in found]
    yield f"static const uint32_t {name}_ranges[][2] = {{\n{wrapped(rows)}\n}};"


def wrapped(items: Iterable[str]) -> str:
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > 118:
            lines.append("")
        lines[-1] += f"{item},"
    return "\n".join(lines).rstrip(",")


if __name__ == "__main__":
    main()
