"""Finding a checkpoint's weights in an engine file.

TensorRT stores weights as they are, in the engine's type, or transposed, and those of projections
of the same activations side by side or apart: so each is a rectangle of a tensor of the
checkpoint, in rows at equal distances. Only the content is looked at. A rectangle is found by the
first numbers of two rows that follow each other; it reaches as far as both agree. What is left of
the tensor is looked for in the next pass over the engine.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.bundle import DType
from serving.checkpoint_weights import Bits, Matrix, Part, item_size
from serving.stripped_engine import Block

Bytes = npt.NDArray[np.uint8]

_SIGNATURE = 64  # bytes that a row is known by
_WORD = 8  # of those, what the engine is searched for
_WORDS = 1 << 21  # searched at a time
_HASH_BITS = 16
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth's multiplicative hashing)
_BLANK_ROWS = 64  # of one value, such as padding, at the head of a tensor


class _Corner(NamedTuple):
    """Where a rectangle of a matrix, or of its transpose, may begin."""

    tensor: str
    transposed: bool
    row: int
    column: int


class _Probe(NamedTuple):
    """A corner with the first bytes of its row and of the next one."""

    corner: _Corner
    first: bytes
    second: bytes


def find_blocks(engine: Bytes, matrices: Mapping[str, Matrix], dtype: DType) -> tuple[Block, ...]:
    """All rectangles of ``matrices`` in the bytes of an engine with weights of type ``dtype``."""
    blocks: dict[int, Block] = {}
    waiting = [_Corner(name, transposed, 0, 0) for name in matrices for transposed in (False, True)]
    seen = set(waiting)
    while waiting:
        probes = [p for c in waiting if (p := _probe(c, matrices[c.tensor], dtype)) is not None]
        places = _search(engine, {d for p in probes for d in (p.first, p.second)}, dtype)
        rest: list[_Corner] = []
        for probe in probes:
            matrix = matrices[probe.corner.tensor]
            for offset, stride in _pairs(places[probe.first], places[probe.second]):
                if offset not in blocks:
                    block = _grow(engine, probe.corner, matrix, dtype, offset, stride)
                    blocks[offset] = block
                    rest += _rest(block, matrix)
        waiting = [corner for corner in dict.fromkeys(rest) if corner not in seen]
        seen.update(waiting)
    return tuple(blocks[offset] for offset in sorted(blocks))


def _probe(corner: _Corner, matrix: Matrix, dtype: DType) -> _Probe | None:
    """What to look for; None if the rows are too short, or all of one value."""
    numbers = _SIGNATURE // item_size(dtype)
    rows, columns = matrix.shape(corner.transposed)
    if columns - corner.column < numbers:
        return None
    for row in range(corner.row, min(rows - 1, corner.row + _BLANK_ROWS)):
        part = Part(corner.transposed, row, corner.column, 2, numbers)
        first, second = matrix.bits(part, dtype)
        if all(len(set(bits[: _WORD // bits.itemsize].tolist())) > 1 for bits in (first, second)):
            return _Probe(corner._replace(row=row), first.tobytes(), second.tobytes())
    return None


def _search(engine: Bytes, signatures: Collection[bytes], dtype: DType) -> dict[bytes, list[int]]:
    """Where each signature is in the engine, ascending."""
    places: dict[bytes, list[int]] = {signature: [] for signature in signatures}
    firsts = np.array([s[:_WORD] for s in signatures], f"S{_WORD}").view(np.uint64)
    is_likely = np.zeros(1 << _HASH_BITS, bool)
    is_likely[_hash(firsts)] = True
    for shift in range(0, min(_WORD, len(engine)), item_size(dtype)):
        words = engine[shift:][: (len(engine) - shift) // _WORD * _WORD].view(np.uint64)
        for start in range(0, len(words), _WORDS):
            some = words[start : start + _WORDS]
            likely = np.flatnonzero(is_likely[_hash(some)])
            for index in likely[np.isin(some[likely], firsts)].tolist():
                offset = shift + (start + index) * _WORD
                data = engine[offset : offset + _SIGNATURE].tobytes()
                if data in places:
                    places[data].append(offset)
    return {signature: sorted(offsets) for signature, offsets in places.items()}


def _hash(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return (words * _MIXER) >> np.uint64(64 - _HASH_BITS)


def _pairs(firsts: Sequence[int], seconds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Offsets of a row and their distances to the next row behind them."""
    for offset in firsts:
        index = bisect_left(seconds, offset + _SIGNATURE)
        if index < len(seconds):
            yield offset, seconds[index] - offset


def _grow(
    engine: Bytes, corner: _Corner, matrix: Matrix, dtype: DType, offset: int, stride: int
) -> Block:
    """The largest rectangle from this corner whose rows lie in the engine from ``offset``."""
    item = item_size(dtype)
    rows, columns = matrix.shape(corner.transposed)
    widest = min(columns - corner.column, stride // item, (len(engine) - offset - stride) // item)
    two = matrix.bits(Part(corner.transposed, corner.row, corner.column, 2, widest), dtype)
    width = _equal_ahead((two == _rows_at(engine, offset, stride, two)).all(axis=0))
    most = min(rows - corner.row, (len(engine) - offset - width * item) // stride + 1)
    part = Part(corner.transposed, corner.row, corner.column, most, width)
    height = 0
    for done, slab in matrix.slabs(part, dtype):
        found = _rows_at(engine, offset + done * stride, stride, slab)
        equal = _equal_ahead((slab == found).all(axis=1))
        height += equal
        if equal < len(slab):
            break
    return Block(**corner._asdict(), rows=height, columns=width, offset=offset, stride=stride)


def _rows_at(engine: Bytes, offset: int, stride: int, like: Bits) -> Bits:
    """A view of the engine as rows like these."""
    end = offset + (len(like) - 1) * stride + like[0].nbytes
    flat = engine[offset:end]
    return np.ndarray(like.shape, like.dtype, flat, strides=(stride, like.itemsize))


def _equal_ahead(equal: npt.NDArray[np.bool_]) -> int:
    """How many are equal before the first that isn't."""
    return len(equal) if equal.all() else int(equal.argmin())


def _rest(block: Block, matrix: Matrix) -> Iterator[_Corner]:
    """Where the parts of the matrix beside and below a block begin."""
    rows, columns = matrix.shape(block.transposed)
    corner = _Corner(block.tensor, block.transposed, block.row, block.column)
    if block.column + block.columns < columns:
        yield corner._replace(column=block.column + block.columns)
    if block.row + block.rows < rows:
        yield corner._replace(row=block.row + block.rows)
