"""Carrying out a slicing: shorter weights, and the sizes in the graph that follow them."""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.pruning import axes
from engines.pruning.axes import Cut, UnmatchedError
from engines.pruning.parts import Parts
from engines.pruning.slicing import Slicing

Cuts = dict[str, list[Cut]]
"""What was cut from which initialiser, in order."""


def remove(model: ir.Model, slicing: Slicing, cuts: Cuts) -> None:
    """Make the graph smaller by ``slicing``, in place, and note the weights' cuts in ``cuts``.

    Raises UnmatchedError, before anything changes, where a size can't be adapted.
    """
    _check_reshapes(slicing)
    for value, cut in slicing.cuts.items():
        if value.shape is not None:
            value.shape = ir.Shape(axes.kept_size(value, [cut]))
    for node in slicing.reshapes:
        _adapt_reshape(model.graph, node)
    for parts in slicing.parts:
        _adapt_parts(model.graph, parts)
    for attention in slicing.attentions:
        _select_mask(model.graph, attention, slicing.cuts[attention.outputs[0]])
    _cut_initializers(model.graph, slicing, cuts)


def _cut_initializers(graph: ir.Graph, slicing: Slicing, cuts: Cuts) -> None:
    by_value: defaultdict[ir.Value, list[tuple[ir.Node, int, Cut]]] = defaultdict(list)
    for (node, index), cut in slicing.constants.items():
        value = node.inputs[index]
        assert value is not None
        by_value[value].append((node, index, cut))
    for value, uses in by_value.items():
        different = {cut for _, _, cut in uses}
        if len(different) == 1 and len(uses) == len(list(value.uses())):
            (cut,) = different
            _shorten(value, cut)
            cuts.setdefault(str(value.name), []).append(cut)
            continue
        for node, index, cut in uses:  # others use it whole
            name = f"{node.name}.{value.name}"
            copy = ir.Value(
                name=name, shape=value.shape, type=value.type, const_value=value.const_value
            )
            graph.register_initializer(copy)
            _shorten(copy, cut)
            node.replace_input_with(index, copy)


def _shorten(value: ir.Value, cut: Cut) -> None:
    """Cut an initialiser; its numbers are read when they are needed."""
    whole = value.const_value
    assert whole is not None
    sizes = axes.kept_size(value, [cut])

    def shortened() -> ir.TensorProtocol:
        array: npt.NDArray[Any] = np.take(whole.numpy(), cut.kept, axis=cut.axis)
        return ir.Tensor(array, dtype=whole.dtype, name=value.name)

    value.shape = ir.Shape(sizes)
    value.const_value = ir.LazyTensor(
        shortened, dtype=whole.dtype, shape=value.shape, name=value.name
    )


def _check_reshapes(slicing: Slicing) -> None:
    for node in slicing.reshapes:
        shape = node.inputs[1]
        if shape is None or shape.const_value is None:
            _inferred_position(node, slicing.cuts[node.outputs[0]])


def _inferred_position(node: ir.Node, cut: Cut) -> None:
    """Check that a shape put together at run time leaves the size that changes to be inferred."""
    shape = node.inputs[1]
    concat = shape.producer() if shape is not None else None
    parts = list(concat.inputs) if concat is not None and concat.op_type == "Concat" else []
    if len(parts) != axes.rank(node.outputs[0]):
        raise UnmatchedError(f"{node.name} takes its shape from elsewhere")
    part = parts[cut.axis]
    if part is None or part.const_value is None or part.const_value.numpy().ravel()[0] != -1:
        raise UnmatchedError(f"{node.name} takes its shape from elsewhere")


def _adapt_reshape(graph: ir.Graph, node: ir.Node) -> None:
    shape, source, result = node.inputs[1], node.inputs[0], node.outputs[0]
    if shape is None or shape.const_value is None:
        return  # what changes is inferred
    assert source is not None
    assert source.shape is not None
    assert result.shape is not None
    copies = node.attributes.get_int("allowzero", 0) == 0
    sizes = []
    for axis, size in enumerate(axes.constant(node, 1)):
        is_same = size == 0 and copies and source.shape[axis] == result.shape[axis]
        new = result.shape[axis]
        sizes.append(new if isinstance(new, int) and size != -1 and not is_same else size)
    node.replace_input_with(1, Inserter(graph, node, str(node.name)).integers(sizes))


def _adapt_parts(graph: ir.Graph, parts: Parts) -> None:
    node = parts.outputs[0].producer()
    assert node is not None
    insert = Inserter(graph, node, str(node.name))
    sizes = [axes.size(output, parts.axis) for output in parts.outputs]
    if node.op_type == "Split":
        node.resize_inputs(2)
        node.replace_input_with(1, insert.integers(sizes))
        node.attributes.pop("num_outputs", None)
        return
    for index, output in enumerate(parts.outputs):
        taker = output.producer()
        assert taker is not None
        start = sum(sizes[:index])
        taker.replace_input_with(1, insert.integers([start]))
        taker.replace_input_with(2, insert.integers([start + sizes[index]]))


def _select_mask(graph: ir.Graph, attention: ir.Node, cut: Cut) -> None:
    """Take the kept heads of a mask or bias that differs between heads."""
    mask = attention.inputs[3] if len(attention.inputs) > 3 else None
    if mask is None or not axes.has_axis(mask, cut.axis):
        return
    insert = Inserter(graph, attention, str(attention.name))
    axis = axes.rank(mask) + cut.axis
    chosen = insert.value("Gather", [mask, insert.integers(list(cut.kept))], axis=axis)
    chosen.type, chosen.shape = mask.type, ir.Shape(axes.kept_size(mask, [cut]))
    attention.replace_input_with(3, chosen)
