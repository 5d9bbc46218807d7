"""A linear layer as one operator: product, bias, and the GELU or the residual's addition behind it.

What follows a product costs little while its sums are at hand, and a pass over memory later on.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.initializers import add_initializer
from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter, take_place
from engines.passes.matching import only_reader
from engines.passes.own_operators import DOMAIN, define
from engines.passes.transposed_weights import stored_by_output

_SUM = """
    turned = Transpose <perm = [1, 0]> (weight)
    product = MatMul (x, turned)
"""
_FUNCTIONS = {
    "Linear": ("(x, weight, bias) => (y)", "y = Add (product, bias)"),
    "LinearGelu": ("(x, weight, bias) => (y)", "sum = Add (product, bias) y = Gelu (sum)"),
    "LinearAdd": (
        "(x, weight, bias, residual) => (y)",
        "sum = Add (product, bias) y = Add (sum, residual)",
    ),
}


@dataclass
class _Layer:
    """A product and what is computed with it at once."""

    linear: Linear
    last: ir.Node
    operator: str = "Linear"
    bias: ir.Value | None = None
    residual: ir.Value | None = None


def fuse_linears(model: ir.Model) -> None:
    """Replace products with float32 weights, and what follows them, in place."""
    used = set()
    for linear in list(find_linears(model)):
        if linear.dequantize is None and linear.weight.dtype == ir.DataType.FLOAT:
            layer = _layer(linear)
            _replace(model.graph, layer)
            used.add(layer.operator)
    for operator in sorted(used):
        parameters, end = _FUNCTIONS[operator]
        define(model, f"{operator} {parameters}", _SUM + end)
    if used:
        common.RemoveUnusedNodesPass()(model)


def _layer(linear: Linear) -> _Layer:
    layer = _Layer(linear, linear.matmul)
    add = only_reader(layer.last.outputs[0], "Add")
    bias = _other(add, layer.last.outputs[0]) if add is not None else None
    if add is not None and bias is not None and _is_bias(bias, linear.outputs):
        layer.bias, layer.last = bias, add
    result = layer.last.outputs[0]
    gelu, add = only_reader(result, "Gelu"), only_reader(result, "Add")
    if gelu is not None and gelu.attributes.get_string("approximate", "none") == "none":
        layer.operator, layer.last = "LinearGelu", gelu
    elif add is not None:
        residual = _other(add, result)
        if residual is not None and result.shape is not None and residual.shape == result.shape:
            layer.operator, layer.last, layer.residual = "LinearAdd", add, residual
    return layer


def _other(add: ir.Node, value: ir.Value) -> ir.Value | None:
    """What is added to a value."""
    return add.inputs[1] if add.inputs[0] is value else add.inputs[0]


def _is_bias(value: ir.Value, outputs: int) -> bool:
    return value.is_initializer() and value.shape == ir.Shape([outputs])


def _replace(graph: ir.Graph, layer: _Layer) -> None:
    linear = layer.linear
    bias = layer.bias
    if bias is None:
        zeros = np.zeros(linear.outputs, np.float32)
        bias = add_initializer(graph, f"zeros_{linear.outputs}", zeros)
    insert = Inserter(graph, layer.last, linear.matmul.name or layer.operator)
    inputs = [linear.source, stored_by_output(graph, linear), bias]
    if layer.residual is not None:
        inputs.append(layer.residual)
    take_place(graph, layer.last, insert.value(layer.operator, inputs, domain=DOMAIN))
