"""A stripped engine: an engine file without the weights that a checkpoint has anyway.

It is one stream in the xz format: the length of a JSON document in four bytes; the document, which
says which rectangle of which matrix of the checkpoint lies where in the engine; then all other
bytes of the engine in their order.
"""

import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from serving.bundle import DType
from serving.checkpoint_weights import Matrix, Part, item_size, open_matrices
from serving.errors import UserError

SUFFIX = ".stripped"
_LENGTH = 4  # bytes of the document's length
_CHUNK = 1 << 20


class Block(BaseModel):
    """A rectangle of a tensor in an engine: rows of ``columns`` numbers, ``stride`` bytes apart.

    With ``transposed``, rows and columns are those of the transposed matrix. ``offset`` is where
    the first row is in the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    transposed: bool
    row: NonNegativeInt
    column: NonNegativeInt
    rows: PositiveInt
    columns: PositiveInt
    offset: NonNegativeInt
    stride: PositiveInt

    @property
    def part(self) -> Part:
        """What of the tensor it is."""
        return Part(self.transposed, self.row, self.column, self.rows, self.columns)

    def spans(self, item: int) -> npt.NDArray[np.int64]:
        """Where its bytes are, as [n, 2] of begin and end; ``item`` is a number's size."""
        width = self.columns * item
        if width == self.stride:
            return np.array([[self.offset, self.offset + self.rows * width]])
        begin = self.offset + self.stride * np.arange(self.rows)
        return np.stack([begin, begin + width], axis=1)


class Recipe(BaseModel):
    """What an engine of ``size`` bytes is put together from; its weights are of type ``dtype``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: DType
    size: NonNegativeInt
    blocks: tuple[Block, ...]

    @model_validator(mode="after")
    def _is_inside(self) -> Self:
        for block in self.blocks:
            width = block.columns * item_size(self.dtype)
            end = block.offset + (block.rows - 1) * block.stride + width
            if end > self.size or width > block.stride:
                raise ValueError(f"the block of {block.tensor} isn't inside the engine")
        return self

    def other_spans(self) -> list[tuple[int, int]]:
        """Begin and end of all bytes that no block covers, in their order."""
        item = item_size(self.dtype)
        nothing = np.empty((0, 2), np.int64)
        spans = np.concatenate([nothing, *(block.spans(item) for block in self.blocks)])
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
        begins = np.append(spans[:, 0], self.size)
        ends = np.maximum.accumulate(np.insert(spans[:, 1], 0, 0))
        has_gap = begins > ends
        return list(zip(ends[has_gap].tolist(), begins[has_gap].tolist(), strict=True))


def write_stripped(engine: Path, recipe: Recipe, stripped: Path) -> None:
    """Write an engine without the bytes that its recipe takes from the checkpoint."""
    document = recipe.model_dump_json().encode()
    with engine.open("rb") as source, lzma.open(stripped, "wb") as stream:
        stream.write(len(document).to_bytes(_LENGTH, "little") + document)
        for begin, end in recipe.other_spans():
            source.seek(begin)
            for position in range(begin, end, _CHUNK):
                stream.write(source.read(min(_CHUNK, end - position)))


def restore(stripped: Path, checkpoint: Path, engine: Path) -> None:
    """Write an engine with the weights from a checkpoint's directory; compare checksums afterwards.

    Raises UserError if the checkpoint has other tensors or can't be read, or ``stripped`` is
    damaged; what was written is left to the caller.
    """
    matrices = open_matrices(checkpoint)
    with engine.open("wb") as file:
        try:
            with lzma.open(stripped) as stream:
                recipe = _read_recipe(stream)
                _write_others(stream, recipe, file)
        except (EOFError, lzma.LZMAError, ValueError) as error:
            raise UserError(
                f"{str(stripped)!r} is damaged: copy the bundle or export the model again."
            ) from error
        for block in recipe.blocks:
            _write_block(block, matrices.get(block.tensor), checkpoint, recipe.dtype, file)


def _read_recipe(stream: lzma.LZMAFile) -> Recipe:
    length = int.from_bytes(stream.read(_LENGTH), "little")
    return Recipe.model_validate_json(stream.read(length))


def _write_others(stream: lzma.LZMAFile, recipe: Recipe, file: BinaryIO) -> None:
    for begin, end in recipe.other_spans():
        file.seek(begin)
        for position in range(begin, end, _CHUNK):
            file.write(stream.read(min(_CHUNK, end - position)))
    if stream.read(1):  # reading to the end compares the stream's own checksum
        raise ValueError("more bytes than the engine has")


def _write_block(
    block: Block, matrix: Matrix | None, checkpoint: Path, dtype: DType, file: BinaryIO
) -> None:
    rows, columns = matrix.shape(block.transposed) if matrix is not None else (0, 0)
    if matrix is None or block.row + block.rows > rows or block.column + block.columns > columns:
        state = "lacks" if matrix is None else "has a smaller"
        raise UserError(
            f"{str(checkpoint)!r} {state} {block.tensor}, so it is not the checkpoint that the "
            "engine was made from: give the one that was exported."
        )
    for done, bits in matrix.slabs(block.part, dtype):
        begin = block.offset + done * block.stride
        for start, data in _pieces(bits, block.stride):
            file.seek(begin + start)
            file.write(data)


def _pieces(bits: npt.NDArray[np.unsignedinteger], stride: int) -> Iterable[tuple[int, memoryview]]:
    """What lies together, with its distance from the first row."""
    if bits[0].nbytes == stride:
        return [(0, bits.data)]
    return ((row * stride, bits[row].data) for row in range(len(bits)))
