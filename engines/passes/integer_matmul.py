"""Lower linear layers of 8-bit weights and activations to ``MatMulIntegerToFloat``.

ONNX Runtime multiplies unsigned activations with signed weights fastest; signed activations have no
fast kernel on x86. So the same integers are stored 128 higher, with a zero point of 128, and the
numbers are those of the standard graph.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter, take_place
from engines.passes.sizes import known_type
from engines.quantization.smoothing import has_own_weight

_MICROSOFT = "com.microsoft"
_MIDDLE = 128


def lower_integer_matmul(model: ir.Model) -> None:
    """Replace MatMul between Q/DQ activations and int8 weights with a scale a row, in place.

    A weight that something else reads too is left alone, for this operator wants it [in, out].
    """
    graph = model.graph
    unsigned: dict[ir.Node, ir.Value] = {}
    for linear in list(find_linears(model)):
        quantize = _quantized_source(linear)
        if quantize is not None and _has_row_scales(linear):
            if quantize not in unsigned:
                unsigned[quantize] = _unsigned(graph, quantize)
            _replace(graph, linear, unsigned[quantize], quantize.inputs[1])
            graph.opset_imports[_MICROSOFT] = 1


def _quantized_source(linear: Linear) -> ir.Node | None:
    """The QuantizeLinear of a layer's activations: float32 to int8, with one symmetric scale."""
    dequantize = linear.source.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    integers = dequantize.inputs[0]
    quantize = integers.producer() if integers is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    if dequantize.inputs[1:] != quantize.inputs[1:] or len(quantize.inputs) != 3:
        return None
    scale, zero = quantize.inputs[1:]
    if known_type(linear.source) != ir.DataType.FLOAT or _array(scale).ndim:
        return None
    return quantize if _array(zero).dtype == np.int8 and not _array(zero).any() else None


def _has_row_scales(linear: Linear) -> bool:
    """Whether the weight is int8 with one symmetric scale for each output, and this layer's own."""
    dequantize = linear.dequantize
    if dequantize is None or not linear.transposed or linear.weight.dtype != ir.DataType.INT8:
        return False
    is_symmetric = len(dequantize.inputs) == 2
    is_by_row = (
        _array(dequantize.inputs[1]).ndim == 1 and dequantize.attributes.get_int("axis") == 0
    )
    return is_symmetric and is_by_row and has_own_weight(linear)


def _unsigned(graph: ir.Graph, quantize: ir.Node) -> ir.Value:
    """The activations as uint8 around 128."""
    insert = Inserter(graph, quantize, f"{quantize.name}/unsigned")
    source, scale = quantize.inputs[:2]
    value = insert.value("QuantizeLinear", [source, scale, _middle(graph)])
    value.shape, value.type = quantize.outputs[0].shape, ir.TensorType(ir.DataType.UINT8)
    return value


def _replace(graph: ir.Graph, linear: Linear, integers: ir.Value, scale: ir.Value | None) -> None:
    assert linear.dequantize is not None
    columns = np.ascontiguousarray(_array(linear.weight).T)
    insert = Inserter(graph, linear.matmul, linear.matmul.name or linear.name)
    product = insert.value(
        "MatMulIntegerToFloat",
        [
            integers,
            add_initializer(graph, f"{linear.name}/columns", columns),
            scale,
            linear.dequantize.inputs[1],
            _middle(graph),
        ],
        domain=_MICROSOFT,
    )
    take_place(graph, linear.matmul, product)


def _middle(graph: ir.Graph) -> ir.Value:
    return add_initializer(graph, "activation_middle", np.array(_MIDDLE, np.uint8))


def _array(value: ir.Value | None) -> npt.NDArray[Any]:
    """A constant's numbers. Raises ValueError where it is none."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value!r} is no constant")
    return value.const_value.numpy()
