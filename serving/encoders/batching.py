"""Batches of texts that are about as long as each other, so that little of them is padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serving.contract import ATTENTION_MASK, INPUT_IDS, LOGITS_POSITIONS
from serving.encoders.contract import TOKEN_TYPE_IDS
from serving.engine import IntArray

BATCH_TOKENS = 4096
# In a batch, at most so many tokens of padding: more cost what another run does. With MiniLM on a
# CPU a run of one text of 16 tokens takes as long as 20 to 25 tokens more do in a large batch.
MOST_PADDING = 24
# The logits of one position are as long as the vocabulary: they count as so many tokens.
_POSITION_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as an encoder reads it: ids and the types of its tokens, each [n].

    Of fill-mask, ``positions`` are those whose logits are wanted.
    """

    ids: Sequence[int]
    types: Sequence[int]
    positions: Sequence[int] = ()

    @property
    def size(self) -> int:
        """What it takes of a batch's budget, in tokens."""
        return max(len(self.ids), _POSITION_TOKENS * len(self.positions))


def micro_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of the texts of each batch: as many as ``budget`` tokens take, padding included.

    Longest first, so that the largest batch comes first and memory is asked for once. A text that
    is longer than the budget has a batch of its own. So has one that is much longer than others.
    """
    batch: list[int] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else lengths[index]
        padding += longest - lengths[index]
        if batch and ((len(batch) + 1) * longest > budget or padding > MOST_PADDING):
            yield batch
            batch, padding = [], 0
        batch.append(index)
    if batch:
        yield batch


def stacked(texts: Sequence[Tokens], pad: int, *, token_types: bool) -> dict[str, IntArray]:
    """The inputs of a batch, padded on the right to its longest text."""
    shape = (len(texts), max(len(text.ids) for text in texts))
    ids, mask, types = np.full(shape, pad), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    most = max(len(text.positions) for text in texts)
    positions = np.zeros((len(texts), most), np.int64)
    for row, text in enumerate(texts):
        length = len(text.ids)
        ids[row, :length], types[row, :length], mask[row, :length] = text.ids, text.types, 1
        positions[row, : len(text.positions)] = text.positions
    inputs = {INPUT_IDS: ids, ATTENTION_MASK: mask}
    if token_types:
        inputs[TOKEN_TYPE_IDS] = types
    if most:
        inputs[LOGITS_POSITIONS] = positions
    return inputs
