"""Check a mended network against the graph that it came from, before an engine is built from it.

Every breach is an error that names the layer: an engine that builds and is wrong is the worst
outcome. What this can't see is what TensorRT's kernels do with a correct network.
"""

from collections import Counter
from typing import Any

import onnx_ir as ir

from engines.tensorrt.collectives import verify_collectives
from engines.tensorrt.network import (
    Network,
    attention_nodes,
    lacks_kernel,
    name_of,
)
from engines.tensorrt.precision import verify_precision
from engines.tensorrt.quantization import verify_quantization
from engines.tensorrt.tensors import TYPES, VerificationError, ancestors, origins
from serving.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    cached_layers,
    is_cross,
    is_hidden,
    past_name,
    present_name,
)
from serving.encoders.contract import TOKEN_TYPE_IDS

_ENCODER_INPUTS = {INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS, LOGITS_POSITIONS, SOURCE_LENGTHS}
# 64-bit inputs are what the contract has; a scatter along an axis may be computed in another way.
# A function's nodes have one name wherever it is called.
_HARMLESS_WARNINGS = (
    "Int64 binding",
    "will be converted to ScatterElements",
    "will not be queryable",
)


# What masks follow from: the past, or an encoder-decoder's source.
_LENGTHS = frozenset({PAST_LENGTHS, SOURCE_LENGTHS, ATTENTION_MASK})


def verify(network: Network, model: ir.Model) -> None:
    """Compare a mended network with its lowered graph. Raises VerificationError."""
    producers = _producers(network)
    _verify_structure(network, model, producers)
    _verify_caches(network, producers)
    _verify_numbers(network, model, producers)


def verify_encoder(network: Network, model: ir.Model) -> None:
    """Compare the network of an encoder, which has no cache; see ``verify``."""
    producers = _producers(network)
    _verify_structure(network, model, producers)
    if extra := sorted(set(_inputs(network)) - _ENCODER_INPUTS):
        raise VerificationError(f"the input {extra[0]!r} is none of the contract's")
    _verify_numbers(network, model, producers)


def _producers(network: Network) -> dict[str, Any]:
    """The layer that makes each tensor, by the tensor's name."""
    return {
        layer.get_output(i).name: layer
        for layer in (network.definition.get_layer(i) for i in range(network.definition.num_layers))
        for i in range(layer.num_outputs)
    }


def _verify_structure(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    _verify_warnings(network)
    _verify_interface(network, model)
    _verify_inputs_are_used(network, producers)
    _verify_types(network, model)
    _verify_attention(network, model, producers)


def _verify_numbers(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    verify_precision(network, model, producers)
    verify_quantization(network, model, producers)
    verify_collectives(network, model, producers)


def _verify_warnings(network: Network) -> None:
    """The parser had nothing to say but what is known to be harmless."""
    for warning in network.warnings:
        if not any(known in warning for known in _HARMLESS_WARNINGS):
            raise VerificationError(f"its parser warns ({warning})")


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
    reached = ancestors(_outputs(network), producers)
    if unused := sorted(set(_inputs(network)) - reached):
        raise VerificationError(f"nothing uses the input {', '.join(unused)}")


def _verify_types(network: Network, model: ir.Model) -> None:
    """Every tensor that stands for a value of the graph has that value's type."""
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        tensor = network.tensors.get(value.name or "")
        if tensor is None or value.dtype not in TYPES:
            continue
        expected = getattr(network.library.DataType, TYPES[value.dtype])
        if tensor.dtype != expected:
            raise VerificationError(
                f"{value.name!r} is of type {tensor.dtype.name}, not {expected.name}"
            )


def _verify_attention(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    """Every Attention node has its layer, with the operands and the mask that it asks for."""
    attentions = network.attentions()
    kinds = network.library.CausalMaskKind
    lengths = _LENGTHS & set(_inputs(network))
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
        if attention.causal_kind != kinds.NONE or attention.key_value_lengths is not None:
            raise VerificationError(f"{where} has a causal kind or KV lengths beside its mask")
        _verify_mask(where, attention.mask, node.inputs[3], producers, lengths)
        if attention.decomposable != lacks_kernel(node):
            raise VerificationError(f"{where} has decomposable = {attention.decomposable}")


def _verify_mask(
    where: str,
    tensor: Any,
    value: ir.Value | None,
    producers: dict[str, Any],
    lengths: frozenset[str],
) -> None:
    """There is a mask, it is the graph's, and it follows from one of the ``lengths``."""
    if tensor is None or value is None:
        raise VerificationError(f"{where} has no mask")
    if name_of(value) not in origins(tensor, producers):
        raise VerificationError(f"{where} has mask {tensor.name!r}, not {name_of(value)!r}")
    if not lengths & set(ancestors([tensor.name], producers)):
        raise VerificationError(
            f"the mask of {where} doesn't depend on {' or '.join(sorted(lengths))}"
        )


def _verify_caches(network: Network, producers: dict[str, Any]) -> None:
    """Every KV buffer is updated once, at the past lengths, from its input to its own output.

    Floating-point buffers are updated in place; of int8 ones, new and old entries are selected.
    """
    inputs, outputs = _inputs(network), _outputs(network)
    layers = cached_layers(inputs)
    pairs = {past_name(i, part): present_name(i, part) for i in layers for part in PARTS}
    others = {n for n in inputs if n not in pairs and not is_hidden(n) and not is_cross(n)}
    if unknown := sorted(others - {INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, SOURCE_LENGTHS}):
        raise VerificationError(f"the input {unknown[0]!r} is none of the contract's")
    selected = {name for name in pairs if inputs[name].dtype == network.library.DataType.INT8}
    in_place = pairs.keys() - selected
    updates = Counter(layer.get_input(0).name for layer in network.layers("KV_CACHE_UPDATE"))
    if wrong := sorted(name for name in {*pairs, *updates} if updates[name] != (name in in_place)):
        raise VerificationError(f"{wrong[0]!r} is updated {updates[wrong[0]]} times in place")
    for layer in network.layers("KV_CACHE_UPDATE"):
        _verify_update(f"cache {layer.name!r}", layer, 0, pairs, outputs)
        if PAST_LENGTHS not in origins(layer.get_input(2), producers):
            raise VerificationError(f"cache {layer.name!r} doesn't write at {PAST_LENGTHS}")
    for name in sorted(selected):
        layer, where = producers.get(pairs[name]), f"cache {name!r}"
        if layer is None or layer.type.name != "SELECT":
            raise VerificationError(f"{where} isn't updated by a selection")
        _verify_update(where, layer, 2, pairs, outputs)
        for position, role in enumerate(("condition", "new entries")):
            if PAST_LENGTHS not in ancestors([layer.get_input(position).name], producers):
                raise VerificationError(f"the {role} of {where} don't depend on {PAST_LENGTHS}")


def _verify_update(
    where: str, layer: Any, position: int, pairs: dict[str, str], outputs: dict[str, Any]
) -> None:
    """The operand at ``position`` is a past, and what comes out is the present of that past."""
    source, result = layer.get_input(position), layer.get_output(0)
    present = pairs.get(source.name)
    if result.name != present or present not in outputs:
        raise VerificationError(
            f"{where} updates {source.name!r} to {result.name!r}, not to the output {present!r}"
        )
    if source.shape[2] < 1:
        raise VerificationError(f"{where} has no fixed capacity")


def _inputs(network: Network) -> dict[str, Any]:
    tensors = map(network.definition.get_input, range(network.definition.num_inputs))
    return {tensor.name: tensor for tensor in tensors}


def _outputs(network: Network) -> dict[str, Any]:
    tensors = map(network.definition.get_output, range(network.definition.num_outputs))
    return {tensor.name: tensor for tensor in tensors}
