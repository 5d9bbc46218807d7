"""An engine of numpy whose next token depends on all that is in a slot: for tests of the loop."""

from types import TracebackType
from typing import Self

import numpy as np

from serving.bundle import LayerInfo
from serving.engine import FloatArray, IntArray
from serving.kv_cache import HostBuffer, KVCache

VOCAB = 64


def next_token(ids: list[int]) -> int:
    """What the engine finds most likely after ``ids``."""
    return sum((position + 1) * token for position, token in enumerate(ids)) % VOCAB


def continuation(ids: list[int], new: int) -> list[int]:
    """The greedy continuation of ``ids`` by ``new`` tokens."""
    whole = list(ids)
    for _ in range(new):
        whole.append(next_token(whole))
    return whole[len(ids) :]


class CountingEngine:
    """Keeps token ids as keys; a wrong slot, length or move therefore changes what follows."""

    def __init__(self, slots: int = 3, capacity: int = 100) -> None:
        layer = LayerInfo(kv_heads=1, key_dim=1, value_dim=1)
        self.cache = KVCache((layer,), "float32", slots, capacity)
        self.vocab_size = VOCAB
        self.weight_bytes = 0
        self.steps: list[tuple[int, int, int]] = []  # first slot, rows, new tokens a row
        self.is_closed = False

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        n, sequence = input_ids.shape
        assert n == 1 or sequence == 1, "several new tokens go one row at a time"
        assert input_ids.flags.c_contiguous
        self.steps.append((first_slot, n, sequence))
        keys = self.cache.buffers[0, "key"]
        assert isinstance(keys, HostBuffer)
        logits = np.zeros((n, logits_positions.shape[1], VOCAB), np.float32)
        for row in range(n):
            past, slot = past_lengths[row], keys.array[first_slot + row, 0, :, 0]
            slot[past : past + sequence] = input_ids[row]
            for k, position in enumerate(logits_positions[row]):
                seen = slot[: past + position + 1].astype(int).tolist()
                best = next_token(seen)
                logits[row, k] = -np.abs(np.arange(VOCAB) - best) / 8
        return logits

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
