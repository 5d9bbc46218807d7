"""Indices kept along an axis, and what becomes of them in operators that move axes about.

Axes are counted from the end (-1 is the last), where broadcasting aligns them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


class UnmatchedError(Exception):
    """The graph isn't of a form that can be cut so; says which value or node is in the way."""


class IndivisibleError(UnmatchedError):
    """The form is right, but a count doesn't divide."""


@dataclass(frozen=True)
class Cut:
    """Only these indices of an axis are kept."""

    axis: int
    kept: tuple[int, ...]


def rank(value: ir.Value | None) -> int:
    """How many axes a value has. Raises UnmatchedError."""
    if value is None or value.shape is None:
        raise UnmatchedError(f"{value.name if value else 'a value'} has no known shape")
    return len(value.shape)


def size(value: ir.Value | None, axis: int) -> int:
    """The size of an axis that the graph fixes. Raises UnmatchedError."""
    if value is None or rank(value) < -axis or not isinstance(value.shape[axis], int):  # type: ignore[index]
        raise UnmatchedError(f"{value.name if value else 'a value'} has no fixed size")
    return int(value.shape[axis])  # type: ignore[index,arg-type]


def from_the_end(axis: int, value: ir.Value | None) -> int:
    """The axis as a negative number."""
    return axis if axis < 0 else axis - rank(value)


def has_axis(value: ir.Value, axis: int) -> bool:
    """Whether a value takes part in an axis of what it is broadcast to."""
    if value.shape is None:  # a product of activations, which has all axes
        return True
    return len(value.shape) >= -axis and value.shape[axis] != 1


def is_weight(value: ir.Value) -> bool:
    """Whether a value is an initialiser of two dimensions, turned, cast or dequantised too."""
    producer = value.producer()
    if producer is not None and producer.op_type in ("Cast", "DequantizeLinear", "Transpose"):
        source = producer.inputs[0]
        return source is not None and is_weight(source)
    return value.is_initializer() and value.shape is not None and len(value.shape) == 2


def constant(node: ir.Node, index: int) -> list[int]:
    """The integers of a node's constant input. Raises UnmatchedError."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        raise UnmatchedError(f"{node.name} isn't constant")
    return [int(number) for number in value.const_value.numpy().ravel()]


def divided_axis(node: ir.Node) -> int:
    """The axis, from the end, along which a Split or a Slice divides."""
    if node.op_type == "Split":
        return from_the_end(node.attributes.get_int("axis", 0), node.inputs[0])
    sliced = constant(node, 3) if len(node.inputs) > 3 else []
    if len(sliced) != 1:
        raise UnmatchedError(f"{node.name} slices several axes")
    return from_the_end(sliced[0], node.inputs[0])


def slice_range(node: ir.Node) -> range:
    """The indices that a Slice of one axis takes."""
    steps = constant(node, 4) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    (start,), (end,), (step,) = constant(node, 1), constant(node, 2), steps
    return range(size(node.inputs[0], divided_axis(node)))[start:end:step]


def kept_groups(attention: ir.Node, heads: Sequence[int]) -> tuple[int, ...] | None:
    """The groups of keys and values that these query heads use; None where all are kept."""
    query_heads, groups = size(attention.inputs[0], -3), size(attention.inputs[1], -3)
    if rank(attention.inputs[0]) != 4:
        raise UnmatchedError(f"{attention.name} has its heads and their elements in one axis")
    per_group = query_heads // groups
    members = [sum(head // per_group == group for head in heads) for group in range(groups)]
    if len(set(members) - {0}) != 1:
        raise UnmatchedError(f"{attention.name} would have groups of different size")
    kept = tuple(group for group, count in enumerate(members) if count)
    return None if len(kept) == groups else kept


def of_scales(node: ir.Node, cut: Cut) -> Cut | None:
    """The cut of a Q/DQ node's scales and zero points from that of its operand; None for none.

    Raises IndivisibleError where part of a group would be kept.
    """
    operand, scales = node.inputs[:2]
    axis = from_the_end(node.attributes.get_int("axis", 1), operand)
    if rank(scales) < 2:
        return Cut(-1, cut.kept) if rank(scales) == 1 and axis == cut.axis else None
    if axis != cut.axis:
        return cut
    group = node.attributes.get_int("block_size", 0)
    kept = tuple(sorted({index // group for index in cut.kept}))
    if len(kept) * group != len(cut.kept):
        raise IndivisibleError(
            f"{node.name} has groups of {group}, and {len(cut.kept)} inputs aren't whole groups"
        )
    return Cut(cut.axis, kept)


def behind(node: ir.Node, cut: Cut) -> Cut:
    """The cut of the result of an operator that moves axes about, from its source's."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if node.op_type == "Reshape":
        return _regrouped(source, cut, result)
    places, place = _places(node), rank(source) + cut.axis
    if place not in places:
        raise UnmatchedError(f"{node.name} drops the axis that would be cut")
    return Cut(places.index(place) - len(places), cut.kept)


def before(node: ir.Node, cut: Cut) -> Cut:
    """The cut of the source, from the result's."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if node.op_type == "Reshape":
        return _regrouped(result, cut, source)
    place = _places(node)[cut.axis]
    if place is None:
        raise UnmatchedError(f"{node.name} makes the axis that would be cut")
    return Cut(place - rank(source), cut.kept)


def _places(node: ir.Node) -> list[int | None]:
    """For each axis of a node's result the axis of its source, None for an axis of size 1."""
    source = node.inputs[0]
    if node.op_type == "Transpose":
        return list(node.attributes.get_ints("perm", list(reversed(range(rank(source))))))
    count = rank(source)
    if node.op_type == "Gather":  # one index of an axis, which goes
        taken = node.attributes.get_int("axis", 0) % count
        if rank(node.inputs[1]) != 0:
            raise UnmatchedError(f"{node.name} gathers several indices")
        return [axis for axis in range(count) if axis != taken]
    if node.op_type == "Squeeze":
        dropped = {axis % count for axis in constant(node, 1)}
        return [axis for axis in range(count) if axis not in dropped]
    added = constant(node, 1)
    total = count + len(added)
    places: list[int | None] = [None] * total
    rest = [axis for axis in range(total) if axis not in {new % total for new in added}]
    for place, axis in enumerate(rest):
        places[axis] = place
    return places


def _regrouped(source: ir.Value, cut: Cut, result: ir.Value) -> Cut:
    """The same elements kept where axes were joined or divided."""
    ends = (0, 0)
    while True:
        own, other = _group(source, result, ends)
        if -cut.axis <= len(own) + ends[0]:
            break
        ends = (ends[0] + len(own), ends[1] + len(other))
    keeps = np.zeros(own, bool)
    keeps[(slice(None),) * (len(own) + ends[0] + cut.axis) + (list(cut.kept),)] = True
    keeps = keeps.reshape(other)
    for axis, length in enumerate(other):
        others = tuple(i for i in range(len(other)) if i != axis)
        kept = np.flatnonzero(keeps.any(axis=others))
        if len(kept) < length and keeps.sum() * length == keeps.size * len(kept):
            return Cut(axis - len(other) - ends[1], tuple(kept.tolist()))
    raise UnmatchedError(f"{result.name} has what would be cut in several axes")


def _group(
    source: ir.Value, result: ir.Value, ends: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The next axes, from the end, that hold the same elements in both shapes."""
    counts = [1, 1]
    while True:
        sizes = [
            tuple(size(value, -end - i) for i in range(count, 0, -1))
            for value, end, count in zip((source, result), ends, counts, strict=True)
        ]
        own, other = math.prod(sizes[0]), math.prod(sizes[1])
        if own == other:
            return sizes[0], sizes[1]
        counts[0 if own < other else 1] += 1


def kept_size(value: ir.Value, cuts: Iterable[Cut]) -> list[int | ir.SymbolicDim]:
    """A value's sizes after these cuts."""
    assert value.shape is not None
    sizes = list(value.shape)
    for cut in cuts:
        sizes[cut.axis] = len(cut.kept)
    return sizes
