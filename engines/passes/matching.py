"""Reading a graph backwards from a value: what passes use to recognise a formula."""

import sys
from dataclasses import dataclass

import onnx_ir as ir


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes a value, if it is of this standard operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def input_of(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """The first input of the node of this operator that computes a value."""
    node = producer(value, op_type)
    return node.inputs[0] if node is not None else None


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads a value once, if it is of this operator."""
    uses = list(value.uses())
    node = uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
    return node if node is not None and node.op_type == op_type else None


def integers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant, such as axes."""
    tensor = value.const_value if value is not None else None
    return [int(number) for number in tensor.numpy().ravel()] if tensor is not None else None


def is_scalar(value: ir.Value | None) -> bool:
    """Whether a value is a constant of one element."""
    return value is not None and value.const_value is not None and value.const_value.size == 1


def is_last_axis(node: ir.Node) -> bool:
    """Whether a node that joins or splits does so along the last axis."""
    source = node.inputs[0]
    axis = node.attributes.get_int("axis", 0)
    rank = len(source.shape) if source is not None and source.shape is not None else None
    return axis == -1 or (rank is not None and axis == rank - 1)


@dataclass(frozen=True)
class Channels:
    """Which channels of ``x``, that has ``size`` of them in its last axis, a Slice takes."""

    x: ir.Value
    size: int
    range: range


def channels(value: ir.Value | None) -> Channels | None:
    """What a value is a slice of, if it is one of the last axis with constant bounds."""
    node = producer(value, "Slice")
    if node is None or len(node.inputs) != 5:
        return None
    x, *bounds = node.inputs
    numbers = [integers(bound) for bound in bounds]
    if x is None or x.shape is None or not isinstance(size := x.shape[-1], int):
        return None
    if any(number is None or len(number) != 1 for number in numbers):
        return None
    start, end, axis, step = (number[0] for number in numbers if number is not None)
    if axis not in (-1, len(x.shape) - 1) or start < 0 or end < 0:
        return None
    return Channels(x, size, range(*slice(start, min(end, sys.maxsize), step).indices(size)))
