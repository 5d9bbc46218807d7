"""Store weights of integers and float8 as [in, out] where TensorRT keeps that once.

From [out, in] with a Transpose, it would store a second, transposed copy for the kernels for one
token: an engine twice as large. Groups of 4 bits have kernels that read [out, in].
"""

import numpy as np
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.passes.insertion import Inserter, take_place
from engines.passes.sizes import static_size

_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)


def lay_out_integer_weights(model: ir.Model) -> None:
    """Turn MatMul(x, Transpose(DequantizeLinear(weight))) into one without a Transpose, in place.

    A tied embedding's Gather goes along the other axis then. Products of quantised activations are
    left alone: their kernels read [out, in].
    """
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and _is_weight_alone(node):
            _lay_out(model.graph, node)


def _is_weight_alone(node: ir.Node) -> bool:
    """Whether a node dequantises a matrix for products with floats, and gathers at most."""
    integers, scales = node.inputs[:2]
    if integers is None or not integers.is_initializer() or scales is None:
        return False
    if integers.dtype not in _EIGHT_BITS and len(scales.shape or ()) != 1:
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    turned = [reader for reader in readers if reader.op_type == "Transpose"]
    products = [use.node for reader in turned for use in reader.outputs[0].uses()]
    return (
        bool(products)
        and all(reader in turned or _is_gather_of_rows(reader) for reader in readers)
        and not any(_is_quantized(product.inputs[0]) for product in products)
    )


def _is_gather_of_rows(node: ir.Node) -> bool:
    indices = node.inputs[1] if node.op_type == "Gather" else None
    has_rank = indices is not None and indices.shape is not None
    return has_rank and node.attributes.get_int("axis", 0) == 0


def _is_quantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _lay_out(graph: ir.Graph, node: ir.Node) -> None:
    old = node.outputs[0]
    rows, columns = (static_size(node.inputs[0], axis) for axis in (0, 1))
    insert = Inserter(graph, node, f"{node.name}/turned")
    operands = [_turned(graph, value) for value in node.inputs]
    if group_size := node.attributes.get_int("block_size", 0):
        weight = insert.value("DequantizeLinear", operands, axis=0, block_size=group_size)
    else:
        weight = insert.value("DequantizeLinear", operands, axis=1)
    weight.shape, weight.type = ir.Shape([columns, rows]), old.type
    for use in list(old.uses()):
        if use.node.op_type == "Gather":
            _gather_columns(graph, use.node, weight)
        else:
            use.node.outputs[0].replace_all_uses_with(weight)
            graph.remove(use.node, safe=True)
    graph.remove(node, safe=True)


def _turned(graph: ir.Graph, value: ir.Value | None) -> ir.Value:
    """A transposed matrix of numbers or scales; a vector is left as it is."""
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.ndim < 2:
        return value
    return add_initializer(graph, f"{value.name}.turned", np.ascontiguousarray(array.T))


def _gather_columns(graph: ir.Graph, gather: ir.Node, weight: ir.Value) -> None:
    indices = gather.inputs[1]
    assert indices is not None
    assert indices.shape is not None
    insert = Inserter(graph, gather, f"{gather.name}/columns")
    columns = insert.value("Gather", [weight, indices], axis=1)
    columns.type = gather.outputs[0].type
    order = [*range(1, len(indices.shape) + 1), 0]
    take_place(graph, gather, insert.value("Transpose", [columns], perm=order))
