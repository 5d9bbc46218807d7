"""Putting weights of few bits into a graph, in standard Q/DQ form."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.quantization.float8 import Float8Weight
from engines.quantization.weights import Integers, QuantizedWeight

_TYPES = {4: ml_dtypes.int4, 8: np.dtype(np.int8)}


def quantize_initializer(
    model: ir.Model, weight: ir.Value, quantized: QuantizedWeight, *, transposed: bool
) -> ir.Node:
    """Let ``DequantizeLinear`` of integers [out, in] stand for ``weight`` wherever it is used.

    The scales have the weight's own type; blocks lie along the inputs. Where the initialiser is
    [in, out] (not ``transposed``), a Transpose follows. Returns the DequantizeLinear node.
    """
    groups = quantized.scales.shape[1]
    size = quantized.integers.shape[1] // groups
    is_per_row = groups == 1
    operands = {
        "integers": _integers(quantized, quantized.integers),
        "scales": quantized.scales[:, 0] if is_per_row else quantized.scales,
    }
    if quantized.zero_points is not None:
        zeros = quantized.zero_points[:, 0] if is_per_row else quantized.zero_points
        operands["zero_points"] = _integers(quantized, zeros)
    attributes = {"axis": 0} if is_per_row else {"axis": 1, "block_size": size}
    return _dequantize(model.graph, weight, operands, attributes, transposed=transposed)


def store_as_float8(
    model: ir.Model, weight: ir.Value, stored: Float8Weight, *, transposed: bool
) -> ir.Node:
    """The same with float8 numbers [out, in]."""
    attributes = {}
    if stored.scales.ndim == 1:
        attributes = {"axis": 0}
    elif stored.scales.ndim == 2:
        attributes = {"axis": 1, "block_size": stored.scheme.block_size}
    operands = {"float8": stored.numbers, "scales": stored.scales}
    return _dequantize(model.graph, weight, operands, attributes, transposed=transposed)


def _dequantize(
    graph: ir.Graph,
    weight: ir.Value,
    operands: Mapping[str, npt.NDArray[Any]],
    attributes: Mapping[str, int],
    *,
    transposed: bool,
) -> ir.Node:
    """Let numbers [out, in], the first of ``operands``, stand for ``weight``."""
    name = weight.name
    assert name is not None
    assert weight.dtype is not None
    scales = operands["scales"].astype(weight.dtype.numpy())
    inputs = [
        add_initializer(graph, f"{name}.{role}", scales if role == "scales" else array)
        for role, array in operands.items()
    ]
    rows, columns = next(iter(operands.values())).shape
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear")
    result = _named(node, f"{name}.dequantized", (rows, columns), weight)
    graph.insert_before(next(iter(graph)), [node])
    if not transposed:
        turned = ir.node("Transpose", [result], {"perm": [1, 0]}, name=f"{name}/Transpose")
        graph.insert_after(node, [turned])
        result = _named(turned, f"{name}.transposed", (columns, rows), weight)
    weight.replace_all_uses_with(result)
    del graph.initializers[name]
    return node


def _integers(quantized: QuantizedWeight, array: Integers) -> npt.NDArray[Any]:
    return array.astype(_TYPES[quantized.scheme.bits])


def _named(node: ir.Node, name: str, shape: Sequence[int], like: ir.Value) -> ir.Value:
    value = node.outputs[0]
    value.name, value.shape, value.type = name, ir.Shape(shape), like.type
    return value
