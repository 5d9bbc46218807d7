"""Check that what a graph has in integers is in integers in its network, and in its engine."""

from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.tensorrt.network import Network, name_of
from engines.tensorrt.tensors import TYPES, VerificationError

_LAYERS = {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE"}
_CLASSES = {"QuantizeLinear": "IQuantizeLayer", "DequantizeLinear": "IDequantizeLayer"}
# Kernels and what else an engine holds took 5 to 14 MB in engines of 2 to 24 layers; a weight of
# integers that is stored as half-precision floats takes at least twice its size.
_WITHOUT_WEIGHTS = 64_000_000
_LARGEST_RATIO = 1.5


def verify_quantization(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    """Every Q/DQ node has its layer, with the node's operands, types and axis.

    Raises VerificationError.
    """
    for node in model.graph:
        if node.op_type in _LAYERS:
            where = f"{node.op_type} {node.name!r}"
            layer = producers.get(name_of(node.outputs[0]))
            if layer is None or layer.type.name != _LAYERS[node.op_type]:
                raise VerificationError(f"{where} has no layer")
            _verify_layer(network, node, layer, where, producers)


def _verify_layer(
    network: Network, node: ir.Node, layer: Any, where: str, producers: dict[str, Any]
) -> None:
    for position, role in enumerate(("operand", "scale")):
        value, tensor = node.inputs[position], layer.get_input(position)
        assert value is not None
        _verify_type(network, value, tensor, f"the {role} of {where}")
        got = tensor.name
        if value.is_initializer():
            source = producers.get(got)
            if source is None or source.type.name != "CONSTANT":
                raise VerificationError(f"the {role} of {where} is not constant")
            got = source.name
        if got != value.name:
            raise VerificationError(f"the {role} of {where} is {got!r}, not {value.name!r}")
    scale = node.inputs[1]
    if scale is not None and scale.shape is not None and len(scale.shape) == 1:
        layer.__class__ = getattr(network.library, _CLASSES[node.op_type])
        axis = node.attributes.get_int("axis", 1)
        if layer.axis != axis:
            raise VerificationError(f"{where} has scales along axis {layer.axis}, not {axis}")


def _verify_type(network: Network, value: ir.Value, tensor: Any, what: str) -> None:
    if value.dtype in TYPES:
        expected = getattr(network.library.DataType, TYPES[value.dtype])
        if tensor.dtype != expected:
            raise VerificationError(f"{what} is of type {tensor.dtype.name}, not {expected.name}")


def verify_size(file: Path, model: ir.Model) -> None:
    """An engine with integer weights is about as large as they are: none became floats.

    Raises VerificationError.
    """
    weights = [value.const_value for value in model.graph.initializers.values()]
    stored = sum(weight.nbytes for weight in weights if weight is not None)
    size = file.stat().st_size
    if _has_integer_weights(model) and size > _LARGEST_RATIO * stored + _WITHOUT_WEIGHTS:
        raise VerificationError(
            f"the engine takes {size / 1e6:.0f} MB for weights of {stored / 1e6:.0f} MB"
        )


def _has_integer_weights(model: ir.Model) -> bool:
    return any(
        node.op_type == "DequantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[0].is_initializer()
        for node in model.graph
    )
