"""The KV cache: buffers allocated once, one row of each for every slot."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.bundle import CacheDType, LayerInfo
from serving.contract import PARTS, Part
from serving.errors import UserError

ALIGNMENT = 64

# numpy has no bfloat16: its bits are kept as uint16.
STORAGE: dict[CacheDType, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}

Shape = tuple[int, int, int, int]


class Buffer(Protocol):
    """One zeroed allocation of shape [slots, kv_heads, capacity, head_dim]."""

    shape: Shape
    address: int
    nbytes: int

    def move(self, from_slot: int, to_slot: int, length: int, start: int = 0) -> None:
        """Copy the positions from ``start`` to before ``length`` of one slot to another."""
        ...


Allocate = Callable[[Shape, CacheDType], Buffer]


class HostBuffer:
    """A buffer in host memory, aligned to a cache line; ``array`` is its numpy view."""

    def __init__(self, shape: Shape, dtype: CacheDType) -> None:
        self.array = aligned_zeros(shape, STORAGE[dtype])
        self.shape = shape
        self.address = self.array.ctypes.data
        self.nbytes = self.array.nbytes

    def move(self, from_slot: int, to_slot: int, length: int, start: int = 0) -> None:
        """Copy the positions from ``start`` to before ``length`` of one slot to another."""
        self.array[to_slot, :, start:length] = self.array[from_slot, :, start:length]


class KVCache:
    """One buffer for the keys and one for the values of each layer, [slots, heads, capacity, dim].

    ``first_layer`` is the number of the first of ``layers``, for a stage that has only some.
    ``adapter_ids`` int64 [slots] says which LoRA adapter made a slot's keys and values, 0 for none:
    whoever puts a sequence into a slot sets it. ``source`` has what an encoder-decoder's slots keep
    of their sources.
    Nothing is allocated after construction and no address ever changes. Raises UserError if the
    buffers don't fit into memory.
    """

    source: "SourceCache | None" = None

    def __init__(
        self,
        layers: Sequence[LayerInfo],
        dtype: CacheDType,
        slots: int,
        capacity: int,
        allocate: Allocate = HostBuffer,
        *,
        first_layer: int = 0,
        source: "SourceCache | None" = None,
    ) -> None:
        self.source = source
        self.slots = slots
        self.capacity = capacity
        self.layers = tuple(layers)
        self.adapter_ids = np.zeros(slots, np.int64)
        shapes: dict[tuple[int, Part], Shape] = {}
        for index, layer in enumerate(layers, first_layer):
            for part in PARTS:
                dim = layer.key_dim if part == "key" else layer.value_dim
                shapes[index, part] = (slots, layer.kv_heads, capacity, dim)
        try:
            self.buffers = {key: allocate(shape, dtype) for key, shape in shapes.items()}
        except MemoryError as error:
            size = sum(int(np.prod(s)) for s in shapes.values()) * STORAGE[dtype].itemsize
            raise UserError(
                f"The KV buffers need {size / 1e9:,.1f} GB, more than this machine can give: "
                f"open the bundle with fewer slots than {slots} or less capacity than {capacity}."
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers together."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def rows(self, layer: int, part: Part, first_slot: int, n: int) -> tuple[int, Shape]:
        """Return the address and shape of ``n`` slots' rows from ``first_slot``; nothing is copied.

        Raises ValueError if there are no such slots.
        """
        if first_slot < 0 or n < 1 or first_slot + n > self.slots:
            raise ValueError(f"no slots {first_slot} to {first_slot + n - 1} of {self.slots}")
        buffer = self.buffers[layer, part]
        _, heads, capacity, dim = buffer.shape
        row_bytes = buffer.nbytes // self.slots
        return buffer.address + first_slot * row_bytes, (n, heads, capacity, dim)

    def check_room(self, past_lengths: npt.NDArray[np.int64], new: int) -> None:
        """Raise ValueError if ``new`` tokens behind the past ones don't fit into every row."""
        if int(past_lengths.max()) + new > self.capacity:
            raise ValueError(f"the tokens don't fit into a capacity of {self.capacity}")

    def move(self, from_slot: int, to_slot: int, length: int, start: int = 0) -> None:
        """Copy the first ``length`` positions of one slot, its adapter and source, over another.

        Those before ``start`` are left out: give it where the two slots are equal up to there, and
        so have the same source.
        """
        self.adapter_ids[to_slot] = self.adapter_ids[from_slot]
        if self.source is not None and start == 0:
            self.source.move(from_slot, to_slot)
        for buffer in self.buffers.values():
            buffer.move(from_slot, to_slot, length, start)


class SourceCache:
    """What each slot keeps of its source: cross-attention's keys and values of every layer.

    ``lengths`` int64 [slots] says how many tokens each source has.
    """

    def __init__(
        self,
        layers: Sequence[LayerInfo],
        dtype: CacheDType,
        slots: int,
        capacity: int,
        allocate: Allocate = HostBuffer,
    ) -> None:
        self.cache = KVCache(layers, dtype, slots, capacity, allocate)
        self.lengths = np.zeros(slots, np.int64)

    @property
    def capacity(self) -> int:
        """Most tokens of a source."""
        return self.cache.capacity

    def move(self, from_slot: int, to_slot: int) -> None:
        """Copy one slot's source over another's."""
        self.lengths[to_slot] = self.lengths[from_slot]
        self.cache.move(from_slot, to_slot, int(self.lengths[from_slot]))


def aligned_zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Allocate zeros on a cache line; untouched pages cost no memory, for they come from calloc."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
