"""Putting integer weights into a graph, in standard Q/DQ form."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.quantization.weights import Integers, QuantizedWeight

_TYPES = {4: ml_dtypes.int4, 8: np.dtype(np.int8)}


def quantize_initializer(
    model: ir.Model, weight: ir.Value, quantized: QuantizedWeight, *, transposed: bool
) -> ir.Node:
    """Let ``DequantizeLinear`` of integers [out, in] stand for ``weight`` wherever it is used.

    The scales have the weight's own type; blocks lie along the inputs. Where the initialiser is
    [in, out] (not ``transposed``), a Transpose follows. Returns the DequantizeLinear node.
    """
    graph, name = model.graph, weight.name
    assert name is not None
    assert weight.dtype is not None
    rows, groups = quantized.scales.shape
    size = quantized.integers.shape[1] // groups
    is_per_row = groups == 1
    scales = quantized.scales[:, 0] if is_per_row else quantized.scales
    inputs = [
        add_initializer(graph, f"{name}.integers", _integers(quantized, quantized.integers)),
        add_initializer(graph, f"{name}.scales", scales.astype(weight.dtype.numpy())),
    ]
    if quantized.zero_points is not None:
        zeros = quantized.zero_points[:, 0] if is_per_row else quantized.zero_points
        inputs.append(add_initializer(graph, f"{name}.zero_points", _integers(quantized, zeros)))
    attributes = {"axis": 0} if is_per_row else {"axis": 1, "block_size": size}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear")
    result = _named(node, f"{name}.dequantized", (rows, quantized.integers.shape[1]), weight)
    graph.insert_before(next(iter(graph)), [node])
    if not transposed:
        turned = ir.node("Transpose", [result], {"perm": [1, 0]}, name=f"{name}/Transpose")
        graph.insert_after(node, [turned])
        result = _named(turned, f"{name}.transposed", (quantized.integers.shape[1], rows), weight)
    weight.replace_all_uses_with(result)
    del graph.initializers[name]
    return node


def _integers(quantized: QuantizedWeight, array: Integers) -> npt.NDArray[Any]:
    return array.astype(_TYPES[quantized.scheme.bits])


def _named(node: ir.Node, name: str, shape: Sequence[int], like: ir.Value) -> ir.Value:
    value = node.outputs[0]
    value.name, value.shape, value.type = name, ir.Shape(shape), like.type
    return value
