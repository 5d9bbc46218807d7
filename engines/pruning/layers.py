"""Removing whole layers of a residual network."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.calibration import observe
from engines.linears import find_linears
from engines.pruning import axes
from engines.pruning.axes import UnmatchedError
from serving.contract import INPUT_IDS, LOGITS, PARTS, past_name, present_name
from serving.engine import IntArray

_BATCH, _CAPACITY = 0, 2  # axes that all buffers have in common


@dataclass(frozen=True)
class Layer:
    """Where a layer begins and ends in the residual stream."""

    begin: ir.Value
    end: ir.Value


def find_layers(model: ir.Model) -> list[Layer]:
    """The layers, each with one Attention node, that only add to a stream. Raises UnmatchedError.

    The stream passes through values that, at one point of the graph, are all that is known of the
    tokens. Such values lie between layers, and between the attention and the MLP of most.
    """
    points, attentions = _bottlenecks(model.graph)
    before = [
        max((i for i, (at, _) in enumerate(points) if at < a), default=-1) for a in attentions
    ]
    strides = {later - earlier for earlier, later in pairwise(before)}
    if len(attentions) < 2 or len(strides) != 1 or before[0] < 0:
        raise UnmatchedError("the layers aren't alike, or there is one only")
    (stride,) = strides
    bounds = [*before, before[-1] + stride]
    if stride < 1 or bounds[-1] >= len(points):
        raise UnmatchedError("the layers don't follow each other")
    stream = [value for _, value in points[bounds[0] : bounds[-1] + 1]]
    for earlier, later in pairwise(stream):
        if not _adds_to(later, earlier):
            raise UnmatchedError(f"{later.name} isn't the sum of the residual stream and more")
    return [Layer(points[begin][1], points[end][1]) for begin, end in pairwise(bounds)]


def _bottlenecks(graph: ir.Graph) -> tuple[list[tuple[int, ir.Value]], list[int]]:
    """Places, in the graph's order, behind which one value carries all; places of Attention."""
    nodes = list(graph)
    known: dict[ir.Value, int] = {v: -1 for v in graph.inputs if v.name == INPUT_IDS}
    last_use: dict[ir.Value, int] = {}
    for place, node in enumerate(nodes):
        sources = [value for value in node.inputs if value in known]
        if sources and node.op_type != "Shape":
            last_use.update((value, place) for value in sources if value is not None)
            known.update((output, place) for output in node.outputs)
    points: list[tuple[int, ir.Value]] = []
    reach = -1  # how far values made earlier are still used
    made = {place: [v for v, p in known.items() if p == place] for place in set(known.values())}
    for place in sorted(made):
        uses = [(last_use.get(value, -1), value) for value in made[place]]
        if reach <= place and len([use for use, _ in uses if use >= 0]) == 1:
            points.append((place, max(uses, key=lambda use: use[0])[1]))
        reach = max(reach, *(use for use, _ in uses))
    return points, [place for place, node in enumerate(nodes) if node.op_type == "Attention"]


def _adds_to(value: ir.Value, base: ir.Value) -> bool:
    """Whether a value is ``base`` with something added."""
    if value is base:
        return True
    node = value.producer()
    if node is None or node.op_type not in ("Add", "Reshape", "Identity"):
        return False
    count = len(node.inputs) if node.op_type == "Add" else 1
    return any(_adds_to(source, base) for source in node.inputs[:count] if source is not None)


def rank_layers(model: ir.Model) -> list[float]:
    """Scores for where there is no text to measure with: depth, and 0 for a layer that adds zeros.

    The deepest layers go first but for the last, which prepares the logits (Gromov et al., "The
    Unreasonable Ineffectiveness of the Deeper Layers", 2024).
    """
    linears = {linear.matmul: linear for linear in find_linears(model)}
    layers = find_layers(model)
    scores = []
    for index, layer in enumerate(layers):
        writers = last_linears(layer.end, linears, until=layer.begin)
        adds_something = any(linears[node].array().any() for node in writers)
        depth = index - len(layers) if index == len(layers) - 1 else index
        scores.append(float(len(layers) - depth) if adds_something else 0.0)
    return scores


def last_linears(
    value: ir.Value, linears: Iterable[ir.Node], until: ir.Value | None = None
) -> list[ir.Node]:
    """The nodes among ``linears`` that ``value`` comes from with no other of them in between."""
    known, found, queue = set(linears), [], [value]
    seen: set[ir.Value | None] = {until}
    while queue:
        value = queue.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node in known:
            found.append(node)
        elif node is not None:
            queue += [source for source in node.inputs if source is not None]
    return [node for node in found if node is not None]


def measure_layers(model: ir.Model, windows: Sequence[IntArray], workspace: Path) -> list[float]:
    """For each layer how much it turns the residual stream: 1 - cosine of begin and end.

    The mean over the tokens of ``windows``: the block influence of Men et al., "ShortGPT: Layers in
    Large Language Models are More Redundant Than You Expect", 2024. ``workspace`` is a directory
    for the weights while the graph runs.
    """
    layers = find_layers(model)
    stream = [layers[0].begin, *(layer.end for layer in layers)]
    totals, tokens = np.zeros(len(layers)), 0
    for arrays in observe(model, stream, windows, workspace):
        states = [arrays[str(value.name)] for value in stream]
        states = [state.reshape(-1, state.shape[-1]).astype(np.float64) for state in states]
        tokens += len(states[0])
        for index, (begin, end) in enumerate(pairwise(states)):
            norms = np.linalg.norm(begin, axis=1) * np.linalg.norm(end, axis=1)
            cosines = (begin * end).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
            totals[index] += (1 - cosines).sum()
    return list(totals / max(tokens, 1))


def remove_layers(model: ir.Model, removed: Sequence[int]) -> None:
    """Let the residual stream pass by these layers, and number the others' buffers anew."""
    graph, layers = model.graph, find_layers(model)
    inputs = {value.name: value for value in graph.inputs}
    _check_buffers(model, len(layers))
    kept = [index for index in range(len(layers)) if index not in removed]
    for index in sorted(removed, reverse=True):
        layers[index].end.replace_all_uses_with(layers[index].begin)
    gone = {make(i, part) for i in removed for part in PARTS for make in (past_name, present_name)}
    graph.outputs[:] = [value for value in graph.outputs if value.name not in gone]
    common.RemoveUnusedNodesPass()(model)
    for index in removed:
        for part in PARTS:
            past = inputs[past_name(index, part)]
            _ask_other(past, inputs[past_name(kept[0], part)])
            graph.inputs.remove(past)
    values = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    for new, old in enumerate(kept):
        for part in PARTS:
            values[past_name(old, part)].name = past_name(new, part)
            values[present_name(old, part)].name = present_name(new, part)
    common.RemoveUnusedNodesPass()(model)


def _check_buffers(model: ir.Model, layers: int) -> None:
    expected = [LOGITS, *(present_name(i, part) for i in range(layers) for part in PARTS)]
    if sorted(str(value.name) for value in model.graph.outputs) != sorted(expected):
        raise UnmatchedError("layers share their keys and values")


def _ask_other(past: ir.Value, other: ir.Value) -> None:
    """Let what reads the sizes of one buffer read those of another."""
    for use in list(past.uses()):
        node = use.node
        first, last = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)
        if node.op_type != "Shape" or not set(range(4)[first:last]) <= {_BATCH, _CAPACITY}:
            raise UnmatchedError(f"{node.name} uses a buffer of a removed layer")
        node.replace_input_with(use.idx, other)


def attention_sizes(model: ir.Model) -> Iterator[tuple[int, int]]:
    """Query heads and key-value heads of each Attention node, in the graph's order."""
    for node in model.graph:
        if node.op_type == "Attention":
            yield axes.size(node.inputs[0], -3), axes.size(node.inputs[1], -3)
