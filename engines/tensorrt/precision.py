"""Check that a network computes in float32 only where its graph does."""

from typing import Any

import onnx_ir as ir

from engines.tensorrt.network import Network
from engines.tensorrt.tensors import VerificationError, ancestors, is_view

# Nodes that compute in float32 whatever they read, unless ``stash_type`` says otherwise.
_NORMALIZATIONS = frozenset({"RMSNormalization", "LayerNormalization", "GroupNormalization"})

# An attention's input layer is of the type of its operands, which are the graph's own.
_WITHOUT_ARITHMETIC = frozenset({"CONSTANT", "ATTENTION_INPUT"})


def verify_precision(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    """Every layer that computes in float32 stands for a node that does. Raises VerificationError.

    The types of the graph's own values are checked elsewhere; this finds layers between them. Those
    that no output needs are left out: the parser leaves some.
    """
    nodes = {_parsed_name(node): node for node in model.graph}
    results = map(network.definition.get_output, range(network.definition.num_outputs))
    for name in sorted(ancestors((result.name for result in results), producers)):
        layer = producers.get(name)
        if layer is None or is_view(layer) or layer.type.name in _WITHOUT_ARITHMETIC:
            continue
        if layer.get_output(0).dtype.name != "FLOAT":
            continue
        node = nodes.get(layer.metadata.removeprefix("[ONNX Layer: ").removesuffix("]"))
        if node is None or not _asks_for_float32(node):
            raise VerificationError(f"the layer {layer.name!r} computes in float32, unasked")


def _parsed_name(node: ir.Node) -> str:
    """The name by which the parser knows a node."""
    return node.name or f"node_of_{node.outputs[0].name}"


def _asks_for_float32(node: ir.Node) -> bool:
    if node.op_type in _NORMALIZATIONS:
        return node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT
    values = (*node.inputs, *node.outputs)
    return any(value is not None and value.dtype == ir.DataType.FLOAT for value in values)
