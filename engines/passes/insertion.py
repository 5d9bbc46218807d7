"""Building new nodes in front of an existing one: what the passes share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.passes.replacement import replace
from serving.contract import INPUT_IDS, PAST_LENGTHS

Attribute = int | float | str | Sequence[int]


class Inserter:
    """Inserts nodes before ``anchor``, named ``prefix/Operator``."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, prefix: str) -> None:
        self.graph, self.anchor, self.prefix = graph, anchor, prefix
        self._count = 0

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        num_outputs: int = 1,
        **attributes: Attribute,
    ) -> ir.Node:
        """Insert one node and return it."""
        return self._insert(op_type, inputs, attributes, domain, num_outputs)

    def value(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        **attributes: Attribute,
    ) -> ir.Value:
        """Insert a node with one output and return that."""
        return self._insert(op_type, inputs, attributes, domain, 1).outputs[0]

    def _insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Attribute],
        domain: str,
        num_outputs: int,
    ) -> ir.Node:
        self._count += 1
        name = f"{self.prefix}/{op_type}#{self._count}"
        made = ir.node(
            op_type, inputs, attributes, domain=domain, num_outputs=num_outputs, name=name
        )
        for position, output in enumerate(made.outputs):
            output.name = f"{name}:{position}"
        self.graph.insert_before(self.anchor, [made])
        return made

    def integers(self, numbers: Sequence[int] | int) -> ir.Value:
        """An int64 constant, shared by its value: a vector, or a scalar for a plain number."""
        return _constant(self.graph, np.asarray(numbers, dtype=np.int64))

    def number(self, number: float) -> ir.Value:
        """A float32 scalar constant, shared by its value."""
        return _constant(self.graph, np.asarray(number, dtype=np.float32))


def _constant(graph: ir.Graph, array: npt.NDArray[np.int64] | npt.NDArray[np.float32]) -> ir.Value:
    """An initialiser with these numbers, made once a graph."""
    kind = "scalar" if array.ndim == 0 else "vector"
    name = f"{array.dtype}_{kind}_" + "_".join(str(number) for number in array.ravel())
    return add_initializer(graph, name, array)


def take_place(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let ``value`` stand for the only output of ``node``, with its name, and remove the node."""
    replace(node.outputs[0], value)
    graph.remove(node, safe=True)


@dataclass(frozen=True)
class Lengths:
    """Lengths that lowered attention needs, computed once at the head of the graph."""

    total: ir.Value
    """Past and new tokens of the longest row, int64 [1]."""
    total_scalar: ir.Value
    """The same, int32 scalar."""
    last_indices: ir.Value
    """Index of each row's last token, int32 [batch]."""
    new: ir.Value
    """Each row's new tokens, padding included, int32 [batch]."""


def insert_lengths(graph: ir.Graph) -> Lengths:
    """Insert the nodes that compute ``Lengths``; the caller drops those that stay unused."""
    inputs = {value.name: value for value in graph.inputs}
    past = inputs[PAST_LENGTHS]
    insert = Inserter(graph, next(iter(graph)), "lengths")
    sequence = insert.value("Shape", [inputs[INPUT_IDS]], start=1, end=2)
    longest = insert.value("ReduceMax", [past], keepdims=1)
    total = insert.value("Add", [longest, sequence])
    scalar = insert.value("Squeeze", [insert.value("Cast", [total], to=ir.DataType.INT32)])
    ends = insert.value("Add", [past, sequence])
    last = insert.value("Sub", [ends, insert.integers([1])])
    new = insert.value("Sub", [ends, past])
    return Lengths(
        total,
        scalar,
        insert.value("Cast", [last], to=ir.DataType.INT32),
        insert.value("Cast", [new], to=ir.DataType.INT32),
    )
