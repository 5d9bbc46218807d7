"""An engine of numpy whose next token depends on all that is in a slot: for tests of the loop."""

from collections.abc import Callable

import numpy as np

from serving.bundle import LayerInfo
from serving.closing import Closing
from serving.engine import FloatArray, IntArray
from serving.kv_cache import HostBuffer, KVCache

VOCAB = 64


def next_token(ids: list[int]) -> int:
    """What the engine finds most likely after ``ids``."""
    return sum((position + 1) * token for position, token in enumerate(ids)) % VOCAB


def repetitive_token(ids: list[int]) -> int:
    """A next token that repeats the text five tokens back, but for every eighth time or so."""
    deviates = next_token(ids) % 8 == 0
    return (ids[-5] + deviates) % VOCAB if len(ids) >= 5 else next_token(ids)


NextToken = Callable[[list[int]], int]


def continuation(ids: list[int], new: int, rule: NextToken = next_token) -> list[int]:
    """The greedy continuation of ``ids`` by ``new`` tokens."""
    whole = list(ids)
    for _ in range(new):
        whole.append(rule(whole))
    return whole[len(ids) :]


class CountingEngine(Closing):
    """Keeps token ids as keys; a wrong slot, length or move therefore changes what follows."""

    chooser = None

    def __init__(
        self, slots: int = 3, capacity: int = 100, rule: NextToken = next_token, vocab: int = VOCAB
    ) -> None:
        layer = LayerInfo(kv_heads=1, key_dim=1, value_dim=1)
        self.cache = KVCache((layer,), "float32", slots, capacity)
        keys = self.cache.buffers[0, "key"]
        assert isinstance(keys, HostBuffer)
        self.keys = keys.array[:, 0, :, 0]
        self.vocab_size = vocab
        self._rule = rule
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
        logits = np.zeros((n, logits_positions.shape[1], self.vocab_size), np.float32)
        for row in range(n):
            past, slot = past_lengths[row], self.keys[first_slot + row]
            slot[past : past + sequence] = input_ids[row]
            for k, position in enumerate(logits_positions[row]):
                seen = slot[: past + position + 1].astype(int).tolist()
                best = self._rule(seen)
                logits[row, k] = -np.abs(np.arange(self.vocab_size) - best) / 8
        return logits

    def close(self) -> None:
        self.is_closed = True
