"""A value's axis taken apart, by one Split or by several Slices."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from engines.pruning import axes
from engines.pruning.axes import UnmatchedError


@dataclass(frozen=True)
class Parts:
    """All parts of a value, in their order along the axis."""

    whole: ir.Value
    axis: int
    """Counted from the end."""
    outputs: tuple[ir.Value, ...]
    sizes: tuple[int, ...]

    def ranges(self) -> Iterator[tuple[ir.Value, range]]:
        """Each part with the indices of the whole that it holds."""
        start = 0
        for output, size in zip(self.outputs, self.sizes, strict=True):
            yield output, range(start, start + size)
            start += size


def parts_of(node: ir.Node) -> Parts:
    """The parts that a Split, or a Slice with its siblings, makes. Raises UnmatchedError."""
    whole = node.inputs[0]
    assert whole is not None
    axis = axes.divided_axis(node)
    if node.op_type == "Split":
        sizes = tuple(axes.size(output, axis) for output in node.outputs)
        return Parts(whole, axis, tuple(node.outputs), sizes)
    slices = [use.node for use in whole.uses()]
    if any(other.op_type != "Slice" or axes.divided_axis(other) != axis for other in slices):
        raise UnmatchedError(f"{whole.name} is read in parts and as a whole")
    slices.sort(key=lambda other: axes.slice_range(other).start)
    ranges = [axes.slice_range(other) for other in slices]
    if [i for part in ranges for i in part] != list(range(axes.size(whole, axis))):
        raise UnmatchedError(f"{whole.name} is read in parts that overlap or leave gaps")
    outputs = tuple(other.outputs[0] for other in slices)
    return Parts(whole, axis, outputs, tuple(len(part) for part in ranges))
