"""Give ``Reshape`` constant shapes instead of ones put together from ``Shape`` nodes.

The tracer knows the sizes of every value, some by name. A size with the same name, or the same
number, at the same axis of source and result is kept (0 in the shape), and one size may be left to
be inferred (-1): so most shapes need no arithmetic at run time.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engines.passes.insertion import Inserter

Size = int | ir.SymbolicDim
Sizes = ir.Shape | Sequence[Size]


def fix_reshapes(model: ir.Model) -> None:
    """Make the shape of every Reshape constant that can be, drop those that do nothing."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source.shape is None or result.shape is None:
            continue
        if same_sizes(source.shape, result.shape) and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph.remove(node, safe=True)
        elif not node.inputs[1].is_initializer():
            sizes = reshape_sizes(source.shape, result.shape)
            if sizes is not None:
                insert = Inserter(graph, node, node.name or "Reshape")
                node.replace_input_with(1, insert.integers(sizes))
                node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def reshape_sizes(source: Sizes, result: Sizes) -> list[int] | None:
    """The constant shape, with ``allowzero=0``, that reshapes one to the other, if there is one."""
    sizes: list[int] = []
    for axis, size in enumerate(result):
        if axis < len(source) and _same(source[axis], size):
            sizes.append(0)
        elif isinstance(size, int) and size > 0:
            sizes.append(size)
        else:
            sizes.append(-1)
    return sizes if sizes.count(-1) <= 1 else None


def same_sizes(one: Sizes, other: Sizes) -> bool:
    """Whether two shapes are known to be equal."""
    return len(one) == len(other) and all(map(_same, tuple(one), tuple(other)))


def _same(one: Size, other: Size) -> bool:
    if isinstance(one, ir.SymbolicDim):
        return isinstance(other, ir.SymbolicDim) and one.value is not None and one == other
    return one == other
