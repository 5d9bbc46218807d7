"""Words that must not be generated, as token sequences."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IntArray = npt.NDArray[np.int64]


class BadWords:
    """Forbids the last token of each of ``sequences`` where the tokens before it just came.

    They may have come in the prompt; a sequence of one token never comes. That is what
    NoBadWordsLogitsProcessor of transformers 5.23 does.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._last_ids: dict[tuple[int, ...], list[int]] = {}
        for *beginning, last in sequences:
            self._last_ids.setdefault(tuple(beginning), []).append(last)
        self._lengths = sorted({len(beginning) for beginning in self._last_ids})

    def forbidden(self, prompt_ids: IntArray, generated_ids: IntArray) -> list[int]:
        """Return the ids that may not come after ``prompt_ids`` [n] and ``generated_ids`` [m]."""
        longest = self._lengths[-1]
        newest = (*prompt_ids[-longest:].tolist(), *generated_ids[-longest:].tolist())
        found: list[int] = []
        for length in self._lengths:
            found += self._last_ids.get(newest[max(len(newest) - length, 0) :], ())
        return found


def spellings(tokenizer: "Tokenizer", text: str) -> set[tuple[int, ...]]:
    """Return the token sequences that ``text`` comes as, without special tokens.

    Tokenizers write a word otherwise at the beginning of a text, behind a space, and right behind
    something else, such as a line break.
    """
    spaced = text if text[0].isspace() else f" {text}"
    found = (_behind(tokenizer, *pair) for pair in (("", text), ("\n", text), ("a", spaced)))
    return {ids for ids in found if ids}


def _behind(tokenizer: "Tokenizer", before: str, text: str) -> tuple[int, ...]:
    """The tokens of ``text`` behind ``before``; none if a token has parts of both."""
    encoding = tokenizer.encode(before + text, add_special_tokens=False)
    border = len(before)
    pairs = list(zip(encoding.ids, encoding.offsets, strict=True))
    if any(start < border < end for _, (start, end) in pairs):
        return ()
    return tuple(token_id for token_id, (start, _) in pairs if start >= border)
