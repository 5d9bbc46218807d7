"""Split a standard decoder graph into stages that run one after the other (pipeline parallelism).

A stage has whole layers, with their KV buffers under the names that they have in the whole graph.
Beside ``input_ids`` and ``past_lengths`` it takes ``hidden_states`` from the stage before; only the
last has ``logits_positions`` and ``logits``. Each is a standard graph still, for any target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.stage_boundaries import Boundary, balance, find_boundaries, weights_between
from serving.contract import (
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    cached_layers,
    hidden_name,
    past_name,
    present_name,
)

_SAME_IN_ALL_BUFFERS = {0, 2}  # axes: batch and capacity


@dataclass(frozen=True)
class Stage:
    """One stage's graph and the layers that it has, by their numbers in the whole graph."""

    model: ir.Model
    layers: range
    weight_bytes: int


def split_into_stages(model: ir.Model, count: int) -> list[Stage]:
    """Split ``model``, which stays as it is, into ``count`` stages with about as many weights each.

    A weight that several stages read, such as a tied embedding, goes to all of them. Raises
    ValueError if the graph has no place for so many cuts.
    """
    boundaries = find_boundaries(model)
    if len(boundaries) + 1 < count:
        raise ValueError(
            f"the graph can be cut into {len(boundaries) + 1} stages at most, because its layers "
            "share more than hidden states"
        )
    parts = weights_between(model, boundaries)
    layers = cached_layers(str(value.name) for value in model.graph.inputs)
    stages = []
    first, before = layers[0], None
    for index, joined in enumerate(balance(parts, count)):
        after = boundaries[joined.stop - 1] if joined.stop < len(parts) else None
        end = (after.layer if after is not None else layers[-1]) + 1
        weights = {weight: size for part in joined for weight, size in parts[part].items()}
        graph = _cut(model, index, range(first, end), before, after)
        stages.append(Stage(graph, range(first, end), sum(weights.values())))
        first, before = end, after
    return stages


def _cut(
    model: ir.Model, index: int, layers: range, before: Boundary | None, after: Boundary | None
) -> ir.Model:
    """The stage with these layers, between two boundaries or the graph's ends."""
    stage = model.clone()
    graph = stage.graph
    values = {value.name: value for node in graph for value in node.outputs}
    inputs = {value.name: value for value in graph.inputs}
    presents = [values[present_name(layer, part)] for layer in layers for part in PARTS]
    graph.outputs.clear()
    kept = [inputs[INPUT_IDS], inputs[PAST_LENGTHS]]
    kept += [] if after else [inputs[LOGITS_POSITIONS]]
    for number, value in enumerate(before.carried if before else ()):
        taken = _like(value, hidden_name(index - 1, number))
        values[value.name].replace_all_uses_with(taken)
        values[value.name] = taken  # it may cross the next boundary too
        kept.append(taken)
    kept += [inputs[past_name(layer, part)] for layer in layers for part in PARTS]
    carried = [values[value.name] for value in after.carried] if after else []
    given = [_give(graph, value, hidden_name(index, n)) for n, value in enumerate(carried)]
    graph.outputs.extend([*(given if after else [values[LOGITS]]), *presents])
    _read_sizes_off(graph, inputs[past_name(layers[0], "key")])
    common.RemoveUnusedNodesPass()(stage)
    _check_inputs(graph, kept)
    graph.inputs[:] = kept
    common.CommonSubexpressionEliminationPass()(stage)
    return stage


def _like(value: ir.Value, name: str) -> ir.Value:
    assert value.shape is not None
    return ir.Value(name=name, type=value.type, shape=value.shape.copy())


def _give(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """An output with a value's numbers; for passes the value stays like any other."""
    node = ir.node("Identity", [value], name=f"{name}/Identity")
    graph.append(node)
    output = node.outputs[0]
    assert value.shape is not None
    output.name, output.type, output.shape = name, value.type, value.shape.copy()
    return output


def _read_sizes_off(graph: ir.Graph, buffer: ir.Value) -> None:
    """Read the batch and the capacity, which all buffers share, off one that the stage has."""
    others = set(graph.inputs) - {buffer}
    for node in graph:
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source in others and (source.name or "").startswith("past_key_values."):
            start = node.attributes.get_int("start", 0)
            if set(range(4)[start : node.attributes.get_int("end", 4)]) <= _SAME_IN_ALL_BUFFERS:
                node.replace_input_with(0, buffer)


def _check_inputs(graph: ir.Graph, kept: Sequence[ir.Value]) -> None:
    """Make sure that nothing of another stage is left."""
    if foreign := [value.name for value in graph.inputs if value not in kept and value.uses()]:
        raise ValueError(f"a stage would need {foreign[0]} of another")
