"""Prompts that begin alike: what was computed for one is copied for the next."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from serving.engine import IntArray
from serving.kv_cache import KVCache

# Shorter beginnings are computed faster than looked after.
SHORTEST = 16


@dataclass(slots=True)
class CachedRow:
    """A row of the KV cache that holds the keys and values of ``ids`` [n], and since when.

    They were computed with this LoRA ``adapter``, or with none (0).
    """

    row: int
    ids: IntArray
    adapter: int = 0
    last_used: int = 0

    def shared(self, ids: IntArray, adapter: int) -> int:
        """How many tokens this row and ``ids`` [n] begin with alike."""
        return common_prefix(self.ids, ids) if adapter == self.adapter else 0


@dataclass(slots=True)
class PrefixStatistics:
    """Prompt tokens that were ``looked_up``, and those of them that were ``reused``."""

    looked_up: int = 0
    reused: int = 0


class PrefixCache:
    """Keeps the KV rows of finished sequences in rows of their own, behind the slots.

    The longest common beginning is copied into a new sequence's slot, from a kept row or from a
    running sequence. Where all rows are taken, the one used least recently goes.
    """

    def __init__(self, cache: KVCache, first_row: int) -> None:
        self._cache = cache
        self._free = list(range(first_row, cache.slots))
        self._kept: list[CachedRow] = []
        self._clock = 0
        self.statistics = PrefixStatistics()

    def reuse(self, slot: int, ids: IntArray, adapter: int, running: Iterable[CachedRow]) -> int:
        """Copy the longest known beginning of ``ids`` [n] into a slot; returns its length.

        At least the last token is left to be computed: its logits aren't kept.
        """
        wanted = ids[:-1]
        self.statistics.looked_up += len(ids)
        length, best = 0, None
        for candidate in [*self._kept, *running]:
            shared = candidate.shared(wanted, adapter)
            if shared > length:
                length, best = shared, candidate
        if best is None or length < SHORTEST:
            return 0
        self._touch(best)
        if best.row != slot:
            self._cache.move(best.row, slot, length)
        self.statistics.reused += length
        return length

    def keep(self, slot: int, ids: IntArray, adapter: int) -> None:
        """Copy a sequence's row, which holds ``ids`` [n], before its slot is given to another."""
        if len(ids) < SHORTEST:
            return
        for row in self._kept:
            if row.shared(ids, adapter) == len(ids):
                self._touch(row)
                return
        taken = self._row_for(ids, adapter)
        if taken is None:
            return
        # What the two begin with alike is there already.
        self._cache.move(slot, taken.row, len(ids), taken.shared(ids, adapter))
        taken.ids, taken.adapter = ids.copy(), adapter
        self._touch(taken)

    def _row_for(self, ids: IntArray, adapter: int) -> CachedRow | None:
        """A row that ``ids`` may overwrite: their own beginning, a free one, or the oldest."""
        for row in self._kept:
            if row.shared(ids, adapter) == len(row.ids):
                return row
        if self._free:
            self._kept.append(CachedRow(self._free.pop(0), ids[:0]))
            return self._kept[-1]
        return min(self._kept, key=lambda row: row.last_used, default=None)

    def _touch(self, row: CachedRow) -> None:
        self._clock += 1
        row.last_used = self._clock


def common_prefix(a: IntArray, b: IntArray) -> int:
    """How many elements two arrays [n], [m] begin with alike."""
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differs[0]) if len(differs) else shorter
