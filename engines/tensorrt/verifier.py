"""Check a mended network against the graph that it came from, before an engine is built from it.

Every breach is an error that names the layer: an engine that builds and is wrong is the worst
outcome. What this can't see is what TensorRT's kernels do with a correct network.
"""

from collections import Counter
from typing import Any

import onnx_ir as ir

from engines.tensorrt.network import (
    Network,
    attention_nodes,
    kv_lengths,
    lacks_kernel,
    name_of,
)
from serving.contract import (
    INPUT_IDS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    past_name,
    present_name,
)
from serving.errors import UserError

_TYPES = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.INT4: "INT4",
    ir.DataType.INT8: "INT8",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT16: "HALF",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT: "FLOAT",
}
# Layers that a parser puts between a value and its use, none of which changes a number.
_VIEWS = frozenset({"CAST", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE"})


class VerificationError(UserError):
    """A network that isn't what its graph says."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The TensorRT network is not what the graph says: {what}; "
            "no engine was written, export the model for onnxruntime instead."
        )


def verify(network: Network, model: ir.Model) -> None:
    """Compare a mended network with its lowered graph. Raises VerificationError."""
    producers = {
        layer.get_output(i).name: layer
        for layer in (network.definition.get_layer(i) for i in range(network.definition.num_layers))
        for i in range(layer.num_outputs)
    }
    _verify_interface(network, model)
    _verify_inputs_are_used(network, producers)
    _verify_types(network, model)
    _verify_attention(network, model, producers)
    _verify_caches(network, producers)


def _verify_interface(network: Network, model: ir.Model) -> None:
    """The network has the graph's inputs and outputs, in name, type and shape."""
    for kind, values, tensors in (
        ("input", model.graph.inputs, _inputs(network)),
        ("output", model.graph.outputs, _outputs(network)),
    ):
        expected = {name_of(value): value for value in values}
        if set(expected) != set(tensors):
            missing = sorted(set(expected) ^ set(tensors))
            raise VerificationError(f"{kind}s {', '.join(missing)} are not in both")
        for name, value in expected.items():
            assert value.shape is not None
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            if tuple(tensors[name].shape) != shape:
                raise VerificationError(
                    f"{kind} {name!r} has shape {tuple(tensors[name].shape)}, not {shape}"
                )


def _verify_inputs_are_used(network: Network, producers: dict[str, Any]) -> None:
    """Every input reaches an output; the parser drops what it doesn't understand."""
    reached: set[str] = set()
    waiting = list(_outputs(network))
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            if name in producers:
                waiting += [tensor.name for tensor in _operands(producers[name])]
    if unused := sorted(set(_inputs(network)) - reached):
        raise VerificationError(f"nothing uses the input {', '.join(unused)}")


def _verify_types(network: Network, model: ir.Model) -> None:
    """Every tensor that stands for a value of the graph has that value's type."""
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        tensor = network.tensors.get(value.name or "")
        if tensor is None or value.dtype not in _TYPES:
            continue
        expected = getattr(network.library.DataType, _TYPES[value.dtype])
        if tensor.dtype != expected:
            raise VerificationError(
                f"{value.name!r} is of type {tensor.dtype.name}, not {expected.name}"
            )


def _verify_attention(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    """Every Attention node has its layer, with the operands and the mask that it asks for."""
    attentions = network.attentions()
    kinds = network.library.CausalMaskKind
    nodes = {name_of(node.outputs[0]): node for node in attention_nodes(model)}
    if extra := sorted(set(nodes) ^ set(attentions)):
        raise VerificationError(f"attention {extra[0]!r} is not in both")
    for output, node in nodes.items():
        attention, where = attentions[output], f"attention {node.name!r}"
        if node.attributes.get_float("scale", 0.0) != 1.0:
            raise VerificationError(f"{where} has a scale, which TensorRT's attention has not")
        for position, role in enumerate(("query", "key", "value")):
            got, asked = attention.get_input(position).name, name_of(node.inputs[position])
            if got != asked:
                raise VerificationError(f"{where} has the {role} {got!r}, not {asked!r}")
        causal = bool(node.attributes.get_int("is_causal", 0))
        kind = kinds.LOWER_RIGHT if causal else kinds.NONE
        if attention.causal_kind != kind:
            raise VerificationError(
                f"{where} has causal kind {attention.causal_kind.name}, not {kind.name}"
            )
        lengths = kv_lengths(node)
        if causal and lengths is None:
            raise VerificationError(f"{where} is causal and has no KV lengths in the graph")
        _verify_operand(where, "KV lengths", attention.key_value_lengths, lengths, producers)
        _verify_operand(where, "mask", attention.mask, node.inputs[3], producers)
        if attention.decomposable != lacks_kernel(node):
            raise VerificationError(f"{where} has decomposable = {attention.decomposable}")


def _verify_operand(
    where: str, role: str, tensor: Any, value: ir.Value | None, producers: dict[str, Any]
) -> None:
    """An optional operand is there if the graph has it, and comes from the same value."""
    if (tensor is None) != (value is None):
        raise VerificationError(f"{where} has {'no' if tensor is None else 'unasked'} {role}")
    if tensor is not None and name_of(value) not in _origins(tensor, producers):
        raise VerificationError(f"{where} has {role} {tensor.name!r}, not {name_of(value)!r}")


def _verify_caches(network: Network, producers: dict[str, Any]) -> None:
    """Every KV buffer is updated once, in place: from its input to its own output."""
    inputs, outputs = _inputs(network), _outputs(network)
    layers = [i for i in range(len(inputs)) if past_name(i, "key") in inputs]
    pairs = {past_name(i, part): present_name(i, part) for i in layers for part in PARTS}
    updates = Counter(layer.get_input(0).name for layer in network.layers("KV_CACHE_UPDATE"))
    if wrong := sorted(name for name in {*pairs, *updates} if updates[name] != (name in pairs)):
        raise VerificationError(f"{wrong[0]!r} is updated {updates[wrong[0]]} times")
    if unknown := sorted(set(inputs) - {INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, *pairs}):
        raise VerificationError(f"the input {unknown[0]!r} is none of the contract's")
    for layer in network.layers("KV_CACHE_UPDATE"):
        source, result, where = layer.get_input(0), layer.get_output(0), f"cache {layer.name!r}"
        present = pairs[source.name]
        if result.name != present or present not in outputs:
            raise VerificationError(
                f"{where} updates {source.name!r} to {result.name!r}, not to the output {present!r}"
            )
        if tuple(source.shape) != tuple(result.shape) or source.dtype != result.dtype:
            raise VerificationError(f"{where} changes the shape or type of {source.name!r}")
        if source.shape[2] < 1:
            raise VerificationError(f"{where} has no fixed capacity")
        if PAST_LENGTHS not in _origins(layer.get_input(2), producers):
            raise VerificationError(f"{where} doesn't write at {PAST_LENGTHS}")


def _inputs(network: Network) -> dict[str, Any]:
    tensors = map(network.definition.get_input, range(network.definition.num_inputs))
    return {tensor.name: tensor for tensor in tensors}


def _outputs(network: Network) -> dict[str, Any]:
    tensors = map(network.definition.get_output, range(network.definition.num_outputs))
    return {tensor.name: tensor for tensor in tensors}


def _operands(layer: Any) -> list[Any]:
    operands = map(layer.get_input, range(layer.num_inputs))
    return [tensor for tensor in operands if tensor is not None]


def _origins(tensor: Any, producers: dict[str, Any]) -> list[str]:
    """Names of a tensor and of those that it is a cast or a view of."""
    names = [tensor.name]
    while (layer := producers.get(names[-1])) is not None and layer.type.name in _VIEWS:
        names.append(layer.get_input(0).name)
    return names
