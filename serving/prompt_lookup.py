"""Drafting without a model: text that occurred before goes on as it did then."""

import numpy as np

from serving.decoding import Draft, Sequence

LONGEST_MATCH = 3


class PromptLookup:
    """Drafts what followed the last earlier occurrence of a sequence's newest tokens (Saxena 2023).

    The index of token n-grams grows with the sequence, so that a look-up takes the same few
    microseconds at any length.
    """

    is_free = True

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._found = 0

    def match(self) -> int:
        """Return how many newest tokens, at most 3, occurred before; the longest match wins."""
        self._read(self._sequence.ids[len(self._ids) :].tolist())
        for n in range(min(LONGEST_MATCH, len(self._ids)), 0, -1):
            found = self._after.get(tuple(self._ids[-n:]))
            if found is not None:
                self._found = found
                return n
        return 0

    def propose(self, length: int) -> Draft:
        """Copy ``length`` tokens from the match; at the end of the text the copy copies itself."""
        period = len(self._ids) - self._found
        return Draft(np.array([self._ids[self._found + i % period] for i in range(length)]))

    def close(self) -> None:
        """Nothing to free."""

    def _read(self, new: list[int]) -> None:
        for token in new:
            # The newest n-grams are entered when a token follows: they would find themselves.
            for n in range(1, min(LONGEST_MATCH, len(self._ids)) + 1):
                self._after[tuple(self._ids[-n:])] = len(self._ids)
            self._ids.append(token)
