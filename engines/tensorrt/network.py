"""Graph to TensorRT network: parse it, then mend what the parser gets wrong about attention.

The parser multiplies the whole key buffer by the scale, and takes for granted that there is a fused
kernel. It also drops ``nonpad_kv_seqlen`` and anchors a causal mask at the wrong corner: our graphs
have an explicit mask for that (see causal_masks.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from engines.passes.sizes import known_type, static_size
from serving.bundle import Target
from serving.errors import UserError

# What TensorRT's fused attention takes, in half precision: these head sizes, so many query heads.
# TensorRT-RTX 1.7.1 refused 1, 2 and 3 heads with every number of KV heads.
FUSED_HEADS = range(16, 257, 8)
FEWEST_FUSED = 4
# Initialisers above this stay where they are: the parser is given their address.
_LARGEST_COPIED = 1024


@dataclass(frozen=True)
class Network:
    """A parsed network, with what TensorRT wants to be kept alive until the engine is built."""

    library: Any
    builder: Any
    definition: Any
    tensors: dict[str, Any]
    """Every tensor by its name, which is that of the ONNX value where it stands for one."""
    warnings: tuple[str, ...]
    """What the parser warned of."""
    kept: tuple[Any, ...]

    def layers(self, kind: str) -> Iterator[Any]:
        """Layers of one of the library's ``LayerType`` names."""
        wanted = getattr(self.library.LayerType, kind)
        every = (self.definition.get_layer(i) for i in range(self.definition.num_layers))
        return (layer for layer in every if layer.type == wanted)

    def attentions(self) -> dict[str, Any]:
        """Each IAttention by the name of its output."""
        found = {}
        for layer in self.layers("ATTENTION_OUTPUT"):
            layer.__class__ = self.library.IAttentionOutputLayer
            found[layer.get_output(0).name] = layer.attention
        return found


def parse(model: ir.Model, target: Target, library: Any, log: Any) -> Network:
    """Parse a lowered graph; its weights are used where they lie, without a copy.

    Raises UserError if TensorRT doesn't start here or its parser refuses a node, which it names.
    """
    skeleton, weights = _without_weights(model)
    builder = _start(target, library, log)
    log.warnings.clear()
    definition = builder.create_network(0)  # TensorRT 11 knows strongly typed networks only
    parser = library.OnnxParser(definition, log)
    parsed = parser.load_model_proto(skeleton) and all(
        parser.load_initializer(name, array.ctypes.data, array.nbytes)
        for name, array in weights.items()
    )
    if not parsed or not parser.parse_model_proto():
        raise UserError(_refusal(parser, target, log))
    tensors = {tensor.name: tensor for tensor in _tensors(definition)}
    return Network(
        library, builder, definition, tensors, tuple(log.warnings), (parser, weights, log)
    )


def _start(target: Target, library: Any, log: Any) -> Any:
    try:
        return library.Builder(log)
    except TypeError as error:  # what the bindings make of a builder that TensorRT didn't give
        reason = log.errors[-1] if log.errors else str(error)
        raise UserError(
            f"{target} doesn't start ({reason}): build the engine on a machine with an NVIDIA GPU "
            "and its driver, or for tensorrt-rtx, which needs none."
        ) from error


def _without_weights(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    """Serialise the graph alone; return its larger initialisers beside it, by name."""
    skeleton = model.clone()
    weights = {}
    for name, value in skeleton.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes <= _LARGEST_COPIED:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            continue
        weights[name] = _bytes(tensor)
        value.const_value = ir.ExternalTensor(
            "weights",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
        )
    return ir.to_proto(skeleton).SerializeToString(), weights


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """A tensor's bytes as ONNX stores them, without a copy unless its type is packed."""
    if tensor.dtype.bitwidth < 8:
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ascontiguousarray(tensor.numpy())


def _tensors(definition: Any) -> Iterator[Any]:
    for i in range(definition.num_inputs):
        yield definition.get_input(i)
    for i in range(definition.num_layers):
        layer = definition.get_layer(i)
        for output in range(layer.num_outputs):
            yield layer.get_output(output)


def _refusal(parser: Any, target: Target, log: Any) -> str:
    if not parser.num_errors:
        reason = log.errors[-1] if log.errors else "it gives no reason"
        return f"{target} can't read the graph ({reason}): export it for onnxruntime instead."
    error = parser.get_error(0)
    return (
        f"{target} can't take the {error.node_operator()} node {error.node_name()!r} "
        f"({' '.join(error.desc().split())}): export the model for onnxruntime instead."
    )


def mend(network: Network, model: ir.Model) -> None:
    """Make every IAttention what its node in ``model`` says.

    Queries and keys reach it as they are; what no fused kernel takes may be decomposed. Raises
    UserError if a node has no attention layer.
    """
    attentions = network.attentions()
    for node in attention_nodes(model):
        attention = attentions.get(name_of(node.outputs[0]))
        if attention is None:
            raise UserError(f"TensorRT has no attention layer for the node {node.name!r}.")
        for position in (0, 1):
            attention.set_input(position, network.tensors[name_of(node.inputs[position])])
        attention.decomposable = lacks_kernel(node)


def attention_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The graph's Attention nodes."""
    return (node for node in model.graph if node.op_type == "Attention")


def lacks_kernel(node: ir.Node) -> bool:
    """Whether TensorRT has no fused kernel for an Attention node's type, head size or heads."""
    float32 = known_type(node.outputs[0]) == ir.DataType.FLOAT
    few = static_size(node.outputs[0], 1) < FEWEST_FUSED
    return float32 or few or static_size(node.inputs[1], 3) not in FUSED_HEADS


def name_of(value: ir.Value | None) -> str:
    """The name of a value that must have one."""
    if value is None or value.name is None:
        raise ValueError(f"{value!r} has no name")
    return value.name
