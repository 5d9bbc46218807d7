"""LoRA adapters beside a model: tables of all that are open, which a graph takes each row's from.

Hu et al., LoRA, 2021: a linear layer gives x W + (x A) B. Adapter 0 is none. serving/contract.py
says what the tables' inputs are, and why their rank is free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import DType, LoraTable
from serving.checkpoint_weights import rounded
from serving.contract import lora_name
from serving.errors import UserError
from serving.kv_cache import STORAGE

Floats = npt.NDArray[np.float32]
Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one module: ``a`` [in, rank] and ``b`` [rank, out] with its scale."""

    a: Floats
    b: Floats


Adapter = Mapping[str, Factors]
"""An adapter's factors by the path of the module."""


class AdapterTables:
    """The factors of every adapter, allocated once, as the inputs of a graph.

    ``indices`` has each adapter's number by its name, from 1 on. A table is as wide as the largest
    rank that an adapter has in it. Raises UserError for what ``dtype`` can't hold.
    """

    def __init__(
        self, tables: Sequence[LoraTable], dtype: DType, adapters: Mapping[str, Adapter]
    ) -> None:
        self.indices = {name: index for index, name in enumerate(adapters, 1)}
        self._adapted = _inputs(tables, dtype, adapters)
        self._plain = _inputs(tables, dtype, {})

    def inputs(self, *, adapted: bool) -> Inputs:
        """The graph's inputs by their names; of rank 0 if no row has an adapter."""
        return self._adapted if adapted else self._plain


def _inputs(tables: Sequence[LoraTable], dtype: DType, adapters: Mapping[str, Adapter]) -> Inputs:
    names, inputs = list(adapters), {}
    for table in tables:
        a, b = _joined(table, list(adapters.values()))
        inputs[lora_name(table.name, "a")] = _stored(a, dtype, names, table.name)
        inputs[lora_name(table.name, "b")] = _stored(b, dtype, names, table.name)
    return inputs


def _joined(table: LoraTable, adapters: Sequence[Adapter]) -> tuple[Floats, Floats]:
    """Tables [adapters + 1, in, rank] and [adapters + 1, rank, out] of one layer.

    The modules that were merged into it have their A side by side and their B in blocks.
    """
    ranks = [
        [adapter[m.name].a.shape[1] if m.name in adapter else 0 for m in table.modules]
        for adapter in adapters
    ]
    rank = max(map(sum, ranks), default=0)
    a = np.zeros((len(adapters) + 1, table.inputs, rank), np.float32)
    b = np.zeros((len(adapters) + 1, rank, table.outputs), np.float32)
    for index, adapter in enumerate(adapters, 1):
        first = 0
        for module in table.modules:
            if module.name in adapter:
                factors = adapter[module.name]
                block = slice(first, first + factors.a.shape[1])
                columns = slice(module.first_output, module.first_output + module.outputs)
                a[index, :, block], b[index, block, columns] = factors.a, factors.b
                first = block.stop
    return a, b


def _stored(array: Floats, dtype: DType, names: Sequence[str], table: str) -> npt.NDArray[Any]:
    """The numbers in the graph's type, contiguous."""
    if dtype == "float16":
        beyond = (np.abs(array) > np.finfo(np.float16).max).any(axis=(1, 2))
        if beyond.any():
            raise UserError(
                f"The adapter {names[int(beyond.argmax()) - 1]!r} leaves the range of float16 in "
                f"{table}: export the model in float32."
            )
    return rounded(array.view(np.uint32), "float32", dtype).view(STORAGE[dtype])
