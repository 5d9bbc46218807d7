"""Where a decoder graph can be cut into stages, and where it should be.

A boundary lies between two layers. What a later stage needs and doesn't get crosses it: values that
depend on the tokens. Everything else (positions, rotary tables, masks, lengths) follows from the
graph's inputs at little cost, and is computed again wherever it is used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir

from serving.contract import INPUT_IDS, PARTS, cached_layers, past_name

Weights = Mapping[ir.Value, int]
"""Initialisers and their sizes in bytes."""


@dataclass(frozen=True)
class Boundary:
    """A cut behind node number ``place`` and layer number ``layer`` of the graph."""

    layer: int
    place: int
    carried: tuple[ir.Value, ...]
    """What crosses, T [batch, sequence, ...]: the residual stream, of most architectures alone."""


def find_boundaries(model: ir.Model) -> list[Boundary]:
    """For each pair of neighbouring layers the narrowest cut between them, if there is one.

    There is none where something else than numbers for each token would cross, such as the buffers
    of keys and values that layers share. Among equally narrow cuts the last is taken, which lies
    behind the MLP and not before it.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    made, last_use = _token_values(graph)
    living = _living(made, last_use, len(graph))
    layers = cached_layers(inputs)
    begins, ends = [], []
    for layer in layers:
        places = [made.get(inputs[past_name(layer, part)], len(graph)) for part in PARTS]
        begins.append(min(places))
        ends.append(max(places))
    boundaries = []
    for gap in range(1, len(layers)):
        cuts = [
            (width, -place)
            for place in range(max(ends[:gap]), min(begins[gap:]))
            if (width := _width(living[place], inputs[INPUT_IDS])) is not None
        ]
        if cuts:
            place = -min(cuts)[1]
            boundaries.append(Boundary(layers[gap - 1], place, living[place]))
    return boundaries


def _token_values(graph: ir.Graph) -> tuple[dict[ir.Value, int], dict[ir.Value, int]]:
    """The values that depend on tokens: the places where each is made and last used.

    A KV buffer is made where it is first used. ``input_ids`` itself is given to every stage.
    """
    inputs = set(graph.inputs)
    buffers = {value for value in inputs if (value.name or "").startswith("past_key_values.")}
    known = buffers | {value for value in inputs if value.name == INPUT_IDS}
    made: dict[ir.Value, int] = {}
    last_use: dict[ir.Value, int] = {}
    for place, node in enumerate(graph):
        sources = [value for value in node.inputs if value in known]
        if not sources or (node.op_type == "Shape" and node.inputs[0] in inputs):
            continue
        for value in sources:
            if value is not None and (value in buffers or value not in inputs):
                made.setdefault(value, place)
                last_use[value] = place
        made.update((output, place) for output in node.outputs)
        known.update(node.outputs)
    return made, last_use


def _living(
    made: Mapping[ir.Value, int], last_use: Mapping[ir.Value, int], places: int
) -> list[tuple[ir.Value, ...]]:
    """For every place the values that are made there or earlier and used later."""
    begins: list[list[ir.Value]] = [[] for _ in range(places)]
    ends: list[list[ir.Value]] = [[] for _ in range(places)]
    for value, last in last_use.items():
        begins[made[value]].append(value)
        ends[last].append(value)
    alive: dict[ir.Value, None] = {}
    living = []
    for begin, end in zip(begins, ends, strict=True):
        alive.update(dict.fromkeys(begin))
        for value in end:
            del alive[value]
        living.append(tuple(alive))
    return living


def _width(carried: Sequence[ir.Value], tokens: ir.Value) -> int | None:
    """Bytes a token of these values, None unless all are numbers [batch, sequence, ...]."""
    assert tokens.shape is not None
    width = 0
    for value in carried:
        shape, dtype = value.shape, value.dtype
        if shape is None or dtype is None or not dtype.is_floating_point() or len(shape) < 3:
            return None
        sizes = [size for size in shape[2:] if isinstance(size, int)]
        named = None not in [size.value for size in shape[:2] if not isinstance(size, int)]
        if not named or shape[:2] != tokens.shape[:2] or len(sizes) != len(shape) - 2:
            return None
        width += math.prod(sizes) * dtype.bitwidth // 8
    return width


def weights_between(model: ir.Model, boundaries: Sequence[Boundary]) -> list[Weights]:
    """The weights that each part of the graph reads; one that several read is in all of them."""
    graph = model.graph
    made, _ = _token_values(graph)
    read: dict[ir.Value, frozenset[ir.Value]] = {
        value: frozenset([value]) for value in graph.initializers.values()
    }
    parts: list[set[ir.Value]] = [set() for _ in range(len(boundaries) + 1)]
    for place, node in enumerate(graph):
        sources = [read[v] for v in node.inputs if v in read and v not in made]
        weights: frozenset[ir.Value] = frozenset().union(*sources)
        if any(output in made for output in node.outputs):
            parts[sum(place > boundary.place for boundary in boundaries)] |= weights
        else:
            read.update((output, weights) for output in node.outputs)
    return [{weight: _nbytes(weight) for weight in part} for part in parts]


def _nbytes(weight: ir.Value) -> int:
    return weight.const_value.nbytes if weight.const_value is not None else 0


def balance(parts: Sequence[Weights], stages: int) -> list[range]:
    """Join neighbouring parts into ``stages`` ranges so that the largest one is as small as can be.

    What several parts of a range read counts once.
    """

    @cache
    def weights(first: int, end: int) -> dict[ir.Value, int]:
        before = weights(first, end - 1) if end - first > 1 else {}
        return {**before, **parts[end - 1]}

    @cache
    def best(first: int, count: int) -> tuple[int, int, tuple[range, ...]]:
        """Largest stage, sum of squares (which evens out the others) and ranges from ``first``."""
        if count == 1:
            size = sum(weights(first, len(parts)).values())
            return size, size**2, (range(first, len(parts)),)
        choices = []
        for end in range(first + 1, len(parts) - count + 2):
            size = sum(weights(first, end).values())
            largest, squares, ranges = best(end, count - 1)
            choices.append((max(size, largest), size**2 + squares, (range(first, end), *ranges)))
        return min(choices, key=lambda choice: choice[:2])

    return list(best(0, stages)[2])
