"""Multiply once where several linear layers of a module read the same activations.

Queries, keys and values, or gate and up projection: one product with their weights side by side
reads the activations once and keeps all threads busy for longer than the small ones would.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engines.initializers import add_lazy_initializer
from engines.linears import Linear, find_linears, remember_modules
from engines.passes.insertion import Inserter
from engines.passes.matching import producer
from engines.passes.replacement import replace
from engines.passes.sizes import static_size

# Narrower ones are routers and gates of experts, which are small and precious.
_NARROWEST = 16


@dataclass(frozen=True)
class _Projection:
    """A linear layer with the bias that is added to it, if it has one."""

    linear: Linear
    width: int
    bias: ir.Value | None
    result: ir.Value


def merge_projections(model: ir.Model) -> None:
    """Merge linear layers with one source in one module, followed by a Split; edits in place.

    A weight that is tied or quantised is left alone, as is what only some of the others have: a
    bias. The merged weights and biases are put together when they are read, so that they take no
    memory besides the checkpoint's.
    """
    groups: dict[tuple[object, ...], list[_Projection]] = {}
    for linear in find_linears(model):
        projection = _projection(linear)
        if projection is not None:
            module = linear.name.rpartition(".")[0].rpartition(".")[0]
            kind = (linear.transposed, linear.weight.dtype, projection.bias is not None)
            groups.setdefault((linear.source, module, *kind), []).append(projection)
    for group in groups.values():
        if len(group) > 1:
            _merge(model.graph, group)


def _projection(linear: Linear) -> _Projection | None:
    """What can be merged of a linear layer, or None for one whose weight is used elsewhere too."""
    uses = [linear.weight.uses()]
    if linear.transposed:
        uses += [use.node.outputs[0].uses() for use in linear.weight.uses()]
    if linear.dequantize is not None or any(len(readers) != 1 for readers in uses):
        return None
    width = static_size(linear.weight, 0 if linear.transposed else 1)
    if width < _NARROWEST or not linear.name.endswith(".weight"):
        return None
    product = linear.matmul.outputs[0]
    readers = [use.node for use in product.uses()]
    if len(readers) == 1 and readers[0].op_type == "Add" and not product.is_graph_output():
        for value in readers[0].inputs:
            if value is not None and _is_bias(value, width):
                return _Projection(linear, width, value, readers[0].outputs[0])
    return _Projection(linear, width, None, product)


def _is_bias(value: ir.Value, width: int) -> bool:
    is_vector = value.shape is not None and value.shape == ir.Shape([width])
    return value.is_initializer() and is_vector and len(value.uses()) == 1


def _merge(graph: ir.Graph, group: Sequence[_Projection]) -> None:
    linears = [projection.linear for projection in group]
    first, names = linears[0], [linear.name.removesuffix(".weight") for linear in linears]
    module = names[0].rpartition(".")[0]
    name = f"{module}.{'_'.join(own.rpartition('.')[2] for own in names)}"
    insert = Inserter(graph, first.matmul, name)
    weights = [linear.weight for linear in linears]
    weight = _side_by_side(graph, f"{name}.weight", weights, 0 if first.transposed else 1)
    if first.transposed:
        weight = insert.value("Transpose", [weight], perm=[1, 0])
    product = insert.node("MatMul", [first.source, weight])
    remember_modules(product, {n: p.width for n, p in zip(names, group, strict=True)})
    total = product.outputs[0]
    source_shape, width = first.source.shape, sum(projection.width for projection in group)
    shape = ir.Shape([*source_shape[:-1], width]) if source_shape is not None else None
    total.shape, total.type = shape, first.source.type
    biases = [projection.bias for projection in group if projection.bias is not None]
    if biases:
        total = insert.value("Add", [total, _side_by_side(graph, f"{name}.bias", biases, 0)])
        total.shape, total.type = shape, first.source.type
    sizes = insert.integers([projection.width for projection in group])
    parts = insert.node("Split", [total, sizes], num_outputs=len(group), axis=-1).outputs
    for projection, part in zip(group, parts, strict=True):
        result = projection.result
        if result.shape is None:
            result.shape, result.type = _with_width(shape, projection.width), first.source.type
        replace(result, part)
    _remove(graph, group)


def _with_width(shape: ir.Shape | None, width: int) -> ir.Shape | None:
    return ir.Shape([*shape[:-1], width]) if shape is not None else None


def _side_by_side(graph: ir.Graph, name: str, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """An initialiser that joins others along an axis when it is read."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    sizes = [static_size(values[0], i) for i in range(len(tensors[0].shape))]
    sizes[axis] = sum(static_size(value, axis) for value in values)

    return add_lazy_initializer(
        graph,
        name,
        sizes,
        tensors[0].dtype,
        lambda: np.concatenate([tensor.numpy() for tensor in tensors], axis),
    )


def _remove(graph: ir.Graph, group: Iterable[_Projection]) -> None:
    """Remove what the merged layer stands for."""
    for projection in group:
        node = projection.result.producer()
        linear = projection.linear
        for old in dict.fromkeys(
            [node, linear.matmul, producer(linear.matmul.inputs[1], "Transpose")]
        ):
            if old is not None:
                graph.remove(old, safe=True)
        for value in (linear.weight, projection.bias):
            if value is not None and value.name is not None:
                del graph.initializers[value.name]
