"""Multiply once for each part of a product that is split at once.

TensorRT joins projections of the same activations by itself. Given one weight for all, it stores
that weight twice, in the layouts of the kernels for a prompt and for one token. ONNX Runtime copies
the parts of a product, which for whole texts takes longer than the smaller products do.
"""

import onnx_ir as ir

from engines.initializers import add_lazy_initializer
from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter
from engines.passes.replacement import replace


def separate_projections(model: ir.Model) -> None:
    """Replace Split(MatMul(x, weight) [+ bias]) by a MatMul for each part, in place.

    Weights are floats that nothing else uses. The parts of a weight are cut when they are read, so
    that they take no memory besides the whole.
    """
    for linear in list(find_linears(model)):
        if linear.dequantize is None and len(linear.weight.uses()) == 1:
            _separate(model.graph, linear)


def _separate(graph: ir.Graph, linear: Linear) -> None:
    product, bias = linear.matmul.outputs[0], None
    add = _only_reader(product, "Add")
    if add is not None:
        bias = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
        if bias is None or not bias.is_initializer() or bias.shape != ir.Shape([linear.outputs]):
            return
        product = add.outputs[0]
    split = _only_reader(product, "Split")
    sizes = _sizes(split) if split is not None else None
    if split is None or sizes is None:
        return
    insert = Inserter(graph, split, f"{linear.matmul.name}/parts")
    start = 0
    for part, size in zip(split.outputs, sizes, strict=True):
        weight = _cut(graph, linear.weight, 0 if linear.transposed else 1, start, size)
        if linear.transposed:
            weight = insert.value("Transpose", [weight], perm=[1, 0])
        result = insert.value("MatMul", [linear.source, weight])
        result.shape, result.type = part.shape, part.type
        if bias is not None:
            result = insert.value("Add", [result, _cut(graph, bias, 0, start, size)])
            result.shape, result.type = part.shape, part.type
        replace(part, result)
        start += size
    graph.remove(split, safe=True)


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def _sizes(split: ir.Node) -> list[int] | None:
    """How wide each part of a Split along the last axis is."""
    value, sizes = split.inputs[0], split.inputs[1] if len(split.inputs) > 1 else None
    axis = split.attributes.get_int("axis", 0)
    is_last = value is not None and value.shape is not None and axis in (-1, len(value.shape) - 1)
    if not is_last or sizes is None or sizes.const_value is None:
        return None
    return [int(size) for size in sizes.const_value.numpy()]


def _cut(graph: ir.Graph, whole: ir.Value, axis: int, start: int, size: int) -> ir.Value:
    """An initialiser that is read as a part of another."""
    tensor = whole.const_value
    assert tensor is not None
    name, shape = f"{whole.name}[{start}:{start + size}]", list(tensor.shape.numpy())
    shape[axis] = size
    where = (*[slice(None)] * axis, slice(start, start + size))

    return add_lazy_initializer(
        graph, name, shape, tensor.dtype, lambda: tensor.numpy()[where].copy()
    )
