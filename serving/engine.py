"""The interface that every engine gives the generation loop."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.bundle import DType
from serving.kv_cache import KVCache

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded decoder with its own KV buffers, addressed by slot.

    ``weight_bytes`` is what one decode step reads of the weights.
    """

    cache: KVCache
    vocab_size: int
    weight_bytes: int

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        """Run rows ``input_ids`` [n, sequence] against n slots from ``first_slot`` on.

        ``past_lengths`` [n] is where each row's new tokens are written; ``logits_positions`` [n, k]
        picks the new positions that get logits. More than one new token per row goes one row at a
        time (n = 1). Returns logits [n, k, vocab] as float32, valid until the next step.
        """
        ...

    def close(self) -> None:
        """Free the engine and its buffers."""
        ...


def as_float32(array: npt.NDArray[Any], dtype: DType) -> FloatArray:
    """Return stored values as float32, the same memory if that is what they are."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)
