"""The plan of a step: which memory each input and output of the engine gets. Pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from serving.contract import (
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    past_name,
    present_name,
)
from serving.engine import IntArray
from serving.kv_cache import KVCache
from serving.tensorrt.fit import ALIGNMENT

# The two optimisation profiles that every engine is built with.
PREFILL_PROFILE, DECODE_PROFILE = 0, 1

INT64_BYTES = 8


@dataclass(frozen=True)
class Binding:
    """A tensor's address on the device, and an input's shape; that of an output follows."""

    name: str
    address: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class InputLayout:
    """Offsets in bytes of a step's small inputs in one block, which one copy brings over."""

    input_ids: int
    past_lengths: int
    logits_positions: int
    nbytes: int


def lay_out_inputs(rows: int, tokens: int, positions: int) -> InputLayout:
    """Place the inputs of steps of up to so many rows, tokens a row and positions a row."""
    ids, lengths = _aligned(rows * tokens), _aligned(rows)
    return InputLayout(0, ids, ids + lengths, ids + lengths + _aligned(rows * positions))


def bind_inputs(
    layout: InputLayout, address: int, rows: int, tokens: int, positions: int
) -> Iterator[Binding]:
    """Bind the small inputs of one step, whose block begins at ``address``."""
    yield Binding(INPUT_IDS, address + layout.input_ids, (rows, tokens))
    yield Binding(PAST_LENGTHS, address + layout.past_lengths, (rows,))
    yield Binding(LOGITS_POSITIONS, address + layout.logits_positions, (rows, positions))


def bind_cache(cache: KVCache, first_slot: int, rows: int) -> Iterator[Binding]:
    """Bind past and present of each layer to the same rows of its buffers.

    A floating-point cache is updated there by TensorRT's own layer. Where an int8 cache's entries
    are selected instead, reading and writing one memory gives the same: an entry that was selected
    once is selected again.
    """
    for layer in range(len(cache.layers)):
        for part in PARTS:
            address, shape = cache.rows(layer, part, first_slot, rows)
            yield Binding(past_name(layer, part), address, shape)
            yield Binding(present_name(layer, part), address, None)


def bind_logits(address: int) -> Binding:
    """Bind the logits."""
    return Binding(LOGITS, address, None)


def split_row(
    tokens: int, logits_positions: IntArray, chunk: int, room: int
) -> Iterator[tuple[slice, IntArray]]:
    """Split one row's step into chunks that the engine takes.

    Yields the tokens of each chunk and, in their order, the indices into ``logits_positions`` [k]
    of those that lie in it. A chunk has up to ``chunk`` tokens and ``room`` positions. Raises
    ValueError for positions that appear twice and more than ``room`` of them.
    """
    if len(logits_positions) > room:
        if len(np.unique(logits_positions)) < len(logits_positions):
            raise ValueError(f"more than {room} positions, and some appear twice")
        chunk = min(chunk, room)
    for start in range(0, tokens, chunk):
        inside = (logits_positions >= start) & (logits_positions < start + chunk)
        yield slice(start, min(start + chunk, tokens)), np.flatnonzero(inside)


def _aligned(numbers: int) -> int:
    """Bytes of so many int64 numbers, rounded up to where the next tensor may begin."""
    return -(-numbers * INT64_BYTES // ALIGNMENT) * ALIGNMENT
