"""A linear layer as one operator: product, bias, and the GELU or the residual's addition behind it.

What follows a product costs little while its sums are at hand, and a pass over memory later on.
Weights are float32, or integers of 8 bits as ``MatMulNBits`` has them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.initializers import add_initializer
from engines.linears import find_linears
from engines.passes.insertion import Attribute, Inserter, take_place
from engines.passes.matching import only_reader
from engines.passes.own_operators import ENCODER_DOMAIN, define
from engines.passes.transposed_weights import stored_by_output

# Numbers that share a scale, where our kernels take integers.
_BLOCKS = (64, 128, 256)
_INTEGER_ATTRIBUTES = ("K", "N", "block_size")

_PRODUCT = """
    turned = Transpose <perm = [1, 0]> (weight)
    product = MatMul (x, turned)
"""
_INTEGER_PRODUCT = """
    product = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, block_size: int = @block_size,
        bits = 8, accuracy_level = 4> (x, weight, scales)
"""
_ENDS = {
    "": "y = Add (product, bias)",
    "Gelu": "sum = Add (product, bias) y = Gelu (sum)",
    "Add": "sum = Add (product, bias) y = Add (sum, residual)",
}


@dataclass
class _Layer:
    """A product and what is computed with it at once."""

    last: ir.Node
    source: ir.Value
    weights: list[ir.Value]
    outputs: int
    attributes: dict[str, Attribute] = field(default_factory=dict)
    bias: ir.Value | None = None
    end: str = ""
    residual: ir.Value | None = None

    @property
    def is_integer(self) -> bool:
        """Whether the weights are integers, with scales."""
        return bool(self.attributes)


def fuse_linears(model: ir.Model) -> None:
    """Replace products with constant weights, and what follows them, in place.

    A weight [in, out] that something else reads too is left as it is.
    """
    used = set()
    # One after the other: what one is replaced by is what the next one reads.
    for layer in chain(_float_layers(model), _integer_layers(model.graph)):
        _take_what_follows(layer)
        _replace(model.graph, layer)
        used.add((layer.is_integer, layer.end))
    for is_integer, end in sorted(used):
        _define(model, is_integer, end)
    if used:
        common.RemoveUnusedNodesPass()(model)


def _float_layers(model: ir.Model) -> Iterator[_Layer]:
    for linear in list(find_linears(model)):
        weight = linear.weight
        is_read_twice = not linear.transposed and len(weight.uses()) > 1
        if linear.dequantize is None and weight.dtype == ir.DataType.FLOAT and not is_read_twice:
            by_output = stored_by_output(model.graph, linear)
            yield _Layer(linear.matmul, linear.source, [by_output], linear.outputs)


def _integer_layers(graph: ir.Graph) -> Iterator[_Layer]:
    for node in list(graph):
        if node.op_type != "MatMulNBits" or node.attributes.get_int("bits") != 8:
            continue
        source, *weights = [value for value in node.inputs if value is not None]
        block = node.attributes.get_int("block_size", 0)
        if source.dtype == ir.DataType.FLOAT and len(node.inputs) == 3 and block in _BLOCKS:
            attributes: dict[str, Attribute] = {
                name: node.attributes[name].as_int() for name in _INTEGER_ATTRIBUTES
            }
            yield _Layer(node, source, weights, node.attributes["N"].as_int(), attributes)


def _take_what_follows(layer: _Layer) -> None:
    """Find the bias, and the GELU or the residual."""
    add = only_reader(layer.last.outputs[0], "Add")
    bias = _other(add, layer.last.outputs[0]) if add is not None else None
    if add is not None and bias is not None and _is_bias(bias, layer.outputs):
        layer.bias, layer.last = bias, add
    result = layer.last.outputs[0]
    gelu, add = only_reader(result, "Gelu"), only_reader(result, "Add")
    if gelu is not None and gelu.attributes.get_string("approximate", "none") == "none":
        layer.end, layer.last = "Gelu", gelu
    elif add is not None:
        residual = _other(add, result)
        if residual is not None and result.shape is not None and residual.shape == result.shape:
            layer.end, layer.last, layer.residual = "Add", add, residual


def _other(add: ir.Node, value: ir.Value) -> ir.Value | None:
    """What is added to a value."""
    return add.inputs[1] if add.inputs[0] is value else add.inputs[0]


def _is_bias(value: ir.Value, outputs: int) -> bool:
    return value.is_initializer() and value.shape == ir.Shape([outputs])


def _replace(graph: ir.Graph, layer: _Layer) -> None:
    bias = layer.bias
    if bias is None:
        zeros = np.zeros(layer.outputs, np.float32)
        bias = add_initializer(graph, f"zeros_{layer.outputs}", zeros)
    operator = _name(layer.is_integer, layer.end)
    insert = Inserter(graph, layer.last, layer.last.name or operator)
    inputs = [layer.source, *layer.weights, bias]
    if layer.residual is not None:
        inputs.append(layer.residual)
    value = insert.value(operator, inputs, domain=ENCODER_DOMAIN, **layer.attributes)
    take_place(graph, layer.last, value)


def _name(is_integer: bool, end: str) -> str:
    return ("IntegerLinear" if is_integer else "Linear") + end


def _define(model: ir.Model, is_integer: bool, end: str) -> None:
    parameters = "x, weight, scales, bias" if is_integer else "x, weight, bias"
    attributes = f"<{', '.join(_INTEGER_ATTRIBUTES)}>" if is_integer else ""
    residual = ", residual" if end == "Add" else ""
    body = _INTEGER_PRODUCT if is_integer else _PRODUCT
    signature = f"{_name(is_integer, end)} {attributes} ({parameters}{residual}) => (y)"
    define(model, ENCODER_DOMAIN, signature, body + _ENDS[end])
