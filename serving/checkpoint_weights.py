"""The matrices of a checkpoint's safetensors files, mapped and read a part at a time.

safetensors' own numpy interface knows no bfloat16, so the files are read here: eight bytes with the
length of a JSON header, the header, then the tensors (https://github.com/huggingface/safetensors).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.bundle import DType
from serving.errors import UserError

Bits = npt.NDArray[np.unsignedinteger[Any]]
"""Floats by their bits: uint16 for float16 and bfloat16, uint32 for float32."""

_STORED: dict[str, DType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BITS: dict[DType, np.dtype[Any]] = {
    "float32": np.dtype("<u4"),
    "float16": np.dtype("<u2"),
    "bfloat16": np.dtype("<u2"),
}
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SLAB = 16_000_000  # bytes that are read and converted at a time


class Part(NamedTuple):
    """A rectangle of a matrix, or of the matrix transposed: its first row and column, its size."""

    transposed: bool
    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Matrix:
    """A tensor [rows, columns] of a checkpoint, as stored."""

    stored: Bits
    stored_dtype: DType

    def shape(self, transposed: bool) -> tuple[int, int]:
        """Rows and columns, of the matrix or of its transpose."""
        rows, columns = self.stored.shape
        return (columns, rows) if transposed else (rows, columns)

    def bits(self, part: Part, dtype: DType) -> Bits:
        """Read a part [rows, columns] and round it to ``dtype``, to nearest even."""
        rows = slice(part.row, part.row + part.rows)
        columns = slice(part.column, part.column + part.columns)
        values = self.stored[columns, rows] if part.transposed else self.stored[rows, columns]
        values = rounded(values, self.stored_dtype, dtype)
        return np.ascontiguousarray(values.T if part.transposed else values)

    def slabs(self, part: Part, dtype: DType) -> Iterator[tuple[int, Bits]]:
        """Yield a part some rows at a time, each with how many rows were before."""
        step = max(1, _SLAB // (part.columns * _BITS[dtype].itemsize))
        for done in range(0, part.rows, step):
            rows = min(step, part.rows - done)
            yield done, self.bits(part._replace(row=part.row + done, rows=rows), dtype)


def item_size(dtype: DType) -> int:
    """Bytes of one number."""
    return _BITS[dtype].itemsize


def open_matrices(checkpoint: Path) -> dict[str, Matrix]:
    """Map every float tensor of two axes, by name.

    One with more axes is a matrix for each index of its leading ones: ``name[0]``, ``name[1]`` ...
    Raises UserError if ``checkpoint`` is no directory with safetensors files or one is damaged.
    """
    matrices: dict[str, Matrix] = {}
    for file in _files(checkpoint):
        matrices |= open_file(file)
    return matrices


def open_file(file: Path) -> dict[str, Matrix]:
    """Map what ``open_matrices`` does, of one file; raises UserError if it is damaged."""
    try:
        return _matrices(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(file)!r} is missing, truncated or damaged: get it again.") from error


def tensor_names(file: Path) -> list[str]:
    """The names of all tensors of a file that could be opened, matrices or not."""
    return list(_header(np.memmap(file, np.uint8, "r"))[1])


def _files(checkpoint: Path) -> list[Path]:
    """The files that transformers would read; other copies of the weights may lie beside them."""
    if (checkpoint / _INDEX).is_file():
        try:
            names = set(json.loads((checkpoint / _INDEX).read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(checkpoint / _INDEX)!r} is damaged: get it again.") from error
        return [checkpoint / name for name in sorted(names)]
    if (checkpoint / _SINGLE).is_file():
        return [checkpoint / _SINGLE]
    raise UserError(
        f"{str(checkpoint)!r} has no safetensors files: give the directory of the checkpoint that "
        "the bundle was made from."
    )


def _matrices(file: Path) -> dict[str, Matrix]:
    data = np.memmap(file, np.uint8, "r")
    start, header = _header(data)
    matrices = {}
    for name, entry in header.items():
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if entry["dtype"] in _STORED and len(shape) > 1:
            dtype = _STORED[entry["dtype"]]
            flat = data[start + begin : start + end].view(_BITS[dtype])
            stack = flat.reshape(math.prod(shape[:-2]), *shape[-2:])
            for index, stored in enumerate(stack):
                matrices[name if len(shape) == 2 else f"{name}[{index}]"] = Matrix(stored, dtype)
    return matrices


def _header(data: npt.NDArray[np.uint8]) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and what is said of each."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return start, header


def rounded(values: Bits, stored: DType, dtype: DType) -> Bits:
    """Floats of one type in another, as torch converts them."""
    if stored == dtype:
        return values
    if stored == "bfloat16":
        wide = (values.astype(np.uint32) << 16).view(np.float32)
    elif stored == "float16":
        wide = np.ascontiguousarray(values).view(np.float16).astype(np.float32)
    else:
        wide = np.ascontiguousarray(values).view(np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return wide.astype(np.float16).view(np.uint16)
    bits = wide.view(np.uint32)
    if dtype == "float32":
        return bits
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties go to even
    rounded = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded)
