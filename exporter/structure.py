"""Checks on the traced graph: the contract, one attention a layer, every weight accounted for."""

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir
import torch

from serving.contract import (
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    WINDOW_METADATA,
    past_name,
    present_name,
)

# Constants larger than this, in elements, must be weights or buffers of the model.
_LARGEST_CONSTANT = 4096


class GraphError(Exception):
    """The traced graph isn't what the contract asks for: nothing built from it could be right."""


@dataclass(frozen=True)
class WeightAccount:
    """Which of the model's weights the graph uses."""

    used: tuple[str, ...]
    unused: tuple[str, ...]


def check_graph(model: ir.Model, layers: int, *, shared: bool = False) -> None:
    """Raise GraphError unless the graph has the contract's form with ``layers`` cache layers.

    Each has two cache updates and one Attention node, or the same number of them (differential
    attention has two); where layers may have ``shared`` caches, there may be more.
    """
    graph = model.graph
    pairs = [(layer, part) for layer in range(layers) for part in PARTS]
    inputs = [INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, *(past_name(*pair) for pair in pairs)]
    check_operators(graph)
    check_interface(graph, inputs, [LOGITS, *(present_name(*pair) for pair in pairs)])
    attentions = Counter(node.op_type for node in graph)["Attention"]
    if attentions < layers or (attentions % layers and not shared):
        raise GraphError(
            f"{attentions} Attention nodes for {layers} layers with a cache: the "
            "attention code of this architecture isn't understood"
        )
    check_caches(graph, layers)


def check_operators(graph: ir.Graph) -> None:
    """Raise GraphError for an operator that isn't in the ONNX standard."""
    foreign = {node.domain for node in graph} - {"", "ai.onnx"}
    if foreign:
        raise GraphError(f"operators outside the ONNX standard: {', '.join(sorted(foreign))}")


def check_interface(graph: ir.Graph, inputs: list[str], outputs: list[str]) -> None:
    """Raise GraphError unless a graph has these inputs, each of them used, and outputs."""
    if [value.name for value in graph.inputs] != inputs:
        raise GraphError("its inputs are not those of the contract")
    if [value.name for value in graph.outputs] != outputs:
        raise GraphError("its outputs are not those of the contract")
    for value in graph.inputs:
        if not value.uses():
            raise GraphError(f"its input {value.name} is used nowhere")


def check_caches(graph: ir.Graph, layers: int) -> None:
    """Raise GraphError unless every layer's buffers are updated once, at the past lengths."""
    updates = Counter(node.op_type for node in graph)["TensorScatter"]
    if updates != 2 * layers:
        raise GraphError(f"{updates} cache updates for {layers} layers")
    for layer in range(layers):
        for part in PARTS:
            _check_update(graph, past_name(layer, part), present_name(layer, part))


def account_weights(model: ir.Model, state: dict[str, object]) -> WeightAccount:
    """Match the graph's initialisers with the names of the model's parameters and buffers.

    ``state`` maps every name to its tensor; tied names map to the same one. Raises GraphError for
    a large constant that is none of them.
    """
    used: set[str] = set()
    by_identity: dict[int, set[str]] = {}
    for name, tensor in state.items():
        by_identity.setdefault(id(tensor), set()).add(name)
    for name, value in model.graph.initializers.items():
        if name in state:
            used |= by_identity[id(state[name])]
        elif value.const_value is not None and value.const_value.size > _LARGEST_CONSTANT:
            if same := _holding(value.const_value, state):
                used |= same  # a buffer that the model assigns again while it runs
                continue
            raise GraphError(
                f"{name} is a constant of {value.const_value.size} elements that is no weight"
            )
    return WeightAccount(tuple(sorted(used)), tuple(sorted(set(state) - used)))


def _holding(constant: ir.TensorProtocol, state: dict[str, object]) -> set[str]:
    """Names of the tensors that hold exactly the numbers of ``constant``."""
    shape = tuple(constant.shape.numpy())
    numbers = torch.from_numpy(constant.numpy().astype("float64"))  # torch has no numpy bfloat16
    return {
        name
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
        if tuple(tensor.shape) == shape and torch.equal(tensor.double(), numbers)
    }


def attention_windows(model: ir.Model, layers: int) -> list[int | None]:
    """The sliding window of each layer's attention, None where it sees everything."""
    outputs = {value.name: value for value in model.graph.outputs}
    windows = []
    for layer in range(layers):
        readers = [use.node for use in outputs[present_name(layer, "key")].uses()]
        window = next((w for r in readers if (w := r.metadata_props.get(WINDOW_METADATA))), None)
        windows.append(int(window) if window is not None else None)
    return windows


def _check_update(graph: ir.Graph, past: str, present: str) -> None:
    output = next(value for value in graph.outputs if value.name == present)
    update = output.producer()
    if update is None or update.op_type != "TensorScatter" or update.inputs[0] is None:
        raise GraphError(f"{present} is no cache update")
    if update.inputs[0].name != past:
        raise GraphError(f"{present} updates {update.inputs[0].name} instead of {past}")
    if update.inputs[2] is None or update.inputs[2].name != PAST_LENGTHS:
        raise GraphError(f"{present} isn't written at {PAST_LENGTHS}")
