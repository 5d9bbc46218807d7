"""Turn ``Gemm`` with a weight into ``MatMul`` and ``Add`` on activations of any rank.

PyTorch's ``addmm`` takes matrices only, so models that use it flatten the tokens of all rows before
it and unflatten them behind it. As MatMul every linear layer of every architecture looks alike.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.replacement import replace
from engines.passes.static_reshapes import Size, reshape_sizes, same_sizes


def spell_out_gemm(model: ir.Model) -> None:
    """Replace every plain Gemm with a weight, with the reshapes around it, in place.

    The weight stays as the checkpoint stores it: [in, out], or [out, in] with a Transpose.
    """
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_plain(node):
            _replace(model.graph, node)


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm computes x @ W + b, or with Wᵀ, and W is a weight."""
    source, weight, *rest = node.inputs
    bias = rest[0] if rest else None
    numbers = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return (
        numbers == [1.0, 1.0]
        and node.attributes.get_int("transA", 0) == 0
        and source is not None
        and weight is not None
        and weight.is_initializer()
        and weight.shape is not None
        and len(weight.shape) == 2
        and (bias is None or (bias.shape is not None and len(bias.shape) == 1))
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    weight, results = node.inputs[1], _unflattened(node)
    assert weight is not None
    assert weight.shape is not None
    transposed = node.attributes.get_int("transB", 0) == 1
    insert = Inserter(graph, node, node.name or "Gemm")
    source = _activations(insert, node, results[0], weight.shape[1 if transposed else 0])
    if source is None:
        source, results = node.inputs[0], [node.outputs[0]]
    old = results[0]
    if transposed:
        turned = insert.value("Transpose", [weight], perm=[1, 0])
        turned.type, turned.shape = weight.type, ir.Shape(reversed(weight.shape))
        weight = turned
    new = _like(insert.value("MatMul", [source, weight]), old)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        new = _like(insert.value("Add", [new, node.inputs[2]]), old)
    for result in results:
        replace(result, new)
    for result in results:
        if (reader := result.producer()) is not None and reader is not node:
            graph.remove(reader, safe=True)
    graph.remove(node, safe=True)


def _unflattened(node: ir.Node) -> list[ir.Value]:
    """What the reshapes behind a Gemm make of its result, if all make the same; or the result."""
    result = node.outputs[0]
    readers = [use.node for use in result.uses()]
    values = [reader.outputs[0] for reader in readers if reader.op_type == "Reshape"]
    if result.is_graph_output() or not values or len(values) < len(readers):
        return [result]
    first = values[0].shape
    alike = first is not None and all(
        value.shape is not None and same_sizes(value.shape, first) for value in values
    )
    one_output = sum(value.is_graph_output() for value in values) <= 1
    return values if alike and one_output else [result]


def _activations(insert: Inserter, node: ir.Node, result: ir.Value, width: Size) -> ir.Value | None:
    """The Gemm's source with as many axes as its ``result``, or None where that isn't possible."""
    flat, weight_shape = node.inputs[0], node.outputs[0].shape
    if flat is None or result is node.outputs[0] or result.shape is None or weight_shape is None:
        return None
    if result.shape[-1] != weight_shape[-1]:  # the reshape does more than to unflatten
        return None
    wanted: Sequence[Size] = [*result.shape[:-1], width]
    producer = flat.producer()
    is_reshape = producer is not None and producer.op_type == "Reshape"
    source = producer.inputs[0] if producer is not None and is_reshape else flat
    if source is None or source.shape is None:
        return None
    if same_sizes(source.shape, wanted):
        return source
    sizes = reshape_sizes(source.shape, wanted)
    if sizes is None:
        return None
    shaped = insert.value("Reshape", [source, insert.integers(sizes)])
    shaped.shape, shaped.type = ir.Shape(wanted), source.type
    return shaped


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    value.shape, value.type = other.shape, other.type
    return value
