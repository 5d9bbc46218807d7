#!/usr/bin/env python3
"""Compare the native tokenizer with the tokenizers library on many lines.

Lines of code, of many scripts, emoji and invalid UTF-8 are encoded by tokenizers of each kind that
tests/serving/native/tokenizer_kinds.py makes, decoded with and without special tokens, and some are
decoded token by token. Any difference fails. Speeds are those of one thread, in processor time.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from tokenizers import Tokenizer

from serving.detokenizer import Detokenizer, Vocabulary
from tests.serving.native.compiled import compile_library
from tests.serving.native.native_tokenizer import HARNESS, SOURCES, NativeTokenizer
from tests.serving.native.text_lines import lines, modules
from tests.serving.native.tokenizer_kinds import Kinds

LEARNT_FROM = 20_000  # lines
ROUNDS = 3

Result = TypeVar("Result")


@click.command(help=__doc__)
@click.option("--count", default=100_000, show_default=True, help="Lines.")
@click.option("--pieces", default=2_000, show_default=True, help="Lines decoded token by token.")
@click.option("--vocabulary", default=32_000, show_default=True, help="Tokens of a vocabulary.")
@click.option("--kind", "chosen", multiple=True, help="Only this kind of tokenizer.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, pieces: int, vocabulary: int, chosen: tuple[str, ...], seed: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    library = Path("build/native/tokenizer.so").absolute()
    library.parent.mkdir(parents=True, exist_ok=True)
    compile_library(library, *SOURCES, harness=HARNESS)
    documents = list(modules())
    texts = list(lines(count, seed, [line for text in documents for line in text.split("\n")]))
    learnt = lines(LEARNT_FROM, seed + 1, documents[0].split("\n"))
    kinds = Kinds.learnt([*(t.decode(errors="replace") for t in learnt), *documents], vocabulary)
    click.echo(f"{count:,} lines, {sum(map(len, texts)) / 1e6:.1f} MB\n\n{HEADER}\n{RULE}")
    outcomes = [
        compare(name, make(), library, texts, pieces)
        for name, make in kinds.makers.items()
        if not chosen or name in chosen
    ]
    if wrong := sum(outcome.differences for outcome in outcomes):
        raise click.ClickException(f"{wrong} differences")


@dataclass
class Outcome:
    """What comparing one kind gave; speeds are in MB of text a second."""

    kind: str
    tokens: int
    differences: int
    speed: float
    native_speed: float

    def __str__(self) -> str:
        return (
            f"| {self.kind} | {self.tokens:,} | {self.differences} | {self.speed:.1f} "
            f"| {self.native_speed:.1f} |"
        )


HEADER = "| tokenizer | tokens | differences | tokenizers, MB/s | native, MB/s |"
RULE = "| --- | --: | --: | --: | --: |"


def compare(
    kind: str, tokenizer: Tokenizer, library: Path, texts: list[bytes], pieces: int
) -> Outcome:
    native = NativeTokenizer(library, tokenizer.to_str())
    strings = [text.decode(errors="replace") for text in texts]
    encodings, seconds = timed(lambda: tokenizer.encode_batch_fast(strings))
    expected = [encoding.ids for encoding in encodings]
    found, native_seconds = timed(lambda: native.encode(texts, special=True))
    differences = sum(a != b for a, b in zip(expected, found, strict=True))
    for skip in (True, False):
        decoded = tokenizer.decode_batch(expected, skip_special_tokens=skip)
        differences += sum(
            native.decode(ids, skip_special_tokens=skip) != text
            for ids, text in zip(expected, decoded, strict=True)
        )
    vocabulary = Vocabulary(tokenizer)
    differences += sum(native.stream(ids) != streamed(vocabulary, ids) for ids in expected[:pieces])
    size = sum(map(len, texts)) / 1e6
    tokens = sum(map(len, expected))
    outcome = Outcome(kind, tokens, differences, size / seconds, size / native_seconds)
    click.echo(outcome)
    return outcome


def streamed(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(vocabulary)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the least processor time that it took."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


if __name__ == "__main__":
    main()
