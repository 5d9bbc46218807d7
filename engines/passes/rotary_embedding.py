"""Recognise rotary position embedding and compute it with ``RotaryEmbedding``.

Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021. Models turn pairs of
channels by an angle: channel i with i + dim / 2, or neighbours (interleaved). They write that as
x · cos + turned(x) · sin with every angle given twice, or half by half. The operator takes every
angle once, [batch, sequence, dim / 2], the same for all heads and layers.
"""

from dataclasses import dataclass

import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.matching import (
    channels,
    input_of,
    integers,
    is_last_axis,
    is_scalar,
    producer,
)
from engines.passes.replacement import replace
from engines.passes.static_reshapes import same_sizes

_ELEMENTWISE = frozenset({"Cos", "Sin", "Cast", "Mul"})


@dataclass(frozen=True)
class _Rotation:
    """What a rotation of channels [batch, heads, sequence, dim] reads, and what it gives."""

    result: ir.Value
    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    interleaved: bool = False
    twice: bool = True
    """Whether every angle is given twice."""


def fuse_rotary_embedding(model: ir.Model) -> None:
    """Replace the primitives of every rotation by one node, in place.

    A rotation of the first channels alone is one node too. Tensors that aren't laid out as
    [batch, heads, sequence, head_dim] are left as they are.
    """
    angles: dict[tuple[ir.Value, bool], ir.Value] = {}
    for node in list(model.graph):
        rotation = _sum_of_products(node) or _pair_of_halves(node)
        if rotation is not None:
            _replace(model.graph, rotation, angles)


def _replace(
    graph: ir.Graph, rotation: _Rotation, angles: dict[tuple[ir.Value, bool], ir.Value]
) -> None:
    cos, sin = (_without_heads(value, rotation.x) for value in (rotation.cos, rotation.sin))
    dim = rotation.x.shape[-1] if rotation.x.shape is not None else None
    if cos is None or sin is None or not isinstance(dim, int):
        return
    if rotation.twice:
        cos, sin = (_given_once(value, rotation.interleaved, angles) for value in (cos, sin))
    if cos is None or sin is None:
        return
    x, result = _with_other_channels(rotation, dim)
    node = result.producer()
    assert node is not None
    insert = Inserter(graph, node, node.name or "RotaryEmbedding")
    turned = insert.value(
        "RotaryEmbedding",
        [x, cos, sin],
        interleaved=int(rotation.interleaved),
        rotary_embedding_dim=0 if x is rotation.x else dim,
    )
    replace(result, turned)


def _sum_of_products(node: ir.Node) -> _Rotation | None:
    """x · cos + turned(x) · sin."""
    if node.op_type != "Add":
        return None
    products = [producer(value, "Mul") for value in node.inputs]
    if products[0] is None or products[1] is None:
        return None
    (x, cos), (turned, sin) = (product.inputs for product in products if product is not None)
    if x is None or cos is None or sin is None:
        return None
    for interleaved in (False, True):
        source = _turned_neighbours(turned) if interleaved else _turned_halves(turned)
        if source is x:
            return _Rotation(node.outputs[0], x, cos, sin, interleaved)
    return None


def _turned_halves(value: ir.Value | None) -> ir.Value | None:
    """The x of which ``value`` has minus the second half of the channels, then the first."""
    joined = producer(value, "Concat")
    if joined is None or not is_last_axis(joined) or len(joined.inputs) != 2:
        return None
    negated = producer(joined.inputs[0], "Neg")
    second = channels(negated.inputs[0]) if negated is not None else None
    first = channels(joined.inputs[1])
    if first is None or second is None or first.x is not second.x:
        return None
    half = first.size // 2
    is_halves = first.range == range(half) and second.range == range(half, first.size)
    return first.x if is_halves else None


def _turned_neighbours(value: ir.Value | None) -> ir.Value | None:
    """The x of which ``value`` has minus the odd channels in the even places and vice versa."""
    joined = producer(input_of(value, "Reshape"), "Concat")
    if joined is None or not is_last_axis(joined) or len(joined.inputs) != 2:
        return None
    odd = channels(input_of(input_of(joined.inputs[0], "Unsqueeze"), "Neg"))
    even = channels(input_of(joined.inputs[1], "Unsqueeze"))
    if odd is None or even is None or odd.x is not even.x:
        return None
    size = even.size
    is_neighbours = even.range == range(0, size, 2) and odd.range == range(1, size, 2)
    same_shape = value is not None and value.shape is not None and value.shape == even.x.shape
    columns = [producer(source, "Unsqueeze") for source in joined.inputs]
    rank = len(even.x.shape) if even.x.shape is not None else 0
    in_pairs = all(c is not None and integers(c.inputs[1]) in ([-1], [rank]) for c in columns)
    return even.x if is_neighbours and same_shape and in_pairs else None


def _pair_of_halves(node: ir.Node) -> _Rotation | None:
    """(x1 · cos - x2 · sin, x2 · cos + x1 · sin), with every angle given once."""
    if node.op_type != "Concat" or not is_last_axis(node) or len(node.inputs) != 2:
        return None
    difference, total = producer(node.inputs[0], "Sub"), producer(node.inputs[1], "Add")
    if difference is None or total is None:
        return None
    products = [producer(value, "Mul") for value in (*difference.inputs, *total.inputs)]
    if any(product is None for product in products):
        return None
    pairs = [tuple(product.inputs) for product in products if product is not None]
    (first, cos), (second, sin) = pairs[:2]
    split = producer(first, "Split")
    if split is None or list(split.outputs) != [first, second] or cos is None or sin is None:
        return None
    x = split.inputs[0]
    if pairs[2:] != [(second, cos), (first, sin)] or x is None or not is_last_axis(split):
        return None
    if split.outputs[0].shape is None or split.outputs[0].shape != split.outputs[1].shape:
        return None
    return _Rotation(node.outputs[0], x, cos, sin, twice=False)


def _with_other_channels(rotation: _Rotation, dim: int) -> tuple[ir.Value, ir.Value]:
    """The whole heads and their result, where only their first channels are turned."""
    part, uses = channels(rotation.x), list(rotation.result.uses())
    if part is None or part.range != range(dim) or len(uses) != 1:
        return rotation.x, rotation.result
    joined = uses[0].node
    if joined.op_type != "Concat" or len(joined.inputs) != 2 or not is_last_axis(joined):
        return rotation.x, rotation.result
    rest = channels(joined.inputs[1])
    if rest is None or rest.x is not part.x or rest.range != range(dim, part.size):
        return rotation.x, rotation.result
    return part.x, joined.outputs[0]


def _without_heads(value: ir.Value, x: ir.Value) -> ir.Value | None:
    """[batch, sequence, n] of [batch, 1, sequence, n], for ``x`` [batch, heads, sequence, dim]."""
    node = producer(value, "Unsqueeze")
    angles = node.inputs[0] if node is not None else None
    if node is None or angles is None or angles.shape is None or x.shape is None:
        return None
    fits = len(angles.shape) == 3 and len(x.shape) == 4 and integers(node.inputs[1]) == [1]
    same = fits and same_sizes(tuple(angles.shape)[:2], (x.shape[0], x.shape[2]))
    return angles if same else None


def _given_once(
    value: ir.Value | None, interleaved: bool, known: dict[tuple[ir.Value, bool], ir.Value]
) -> ir.Value | None:
    """Values [..., dim / 2] that ``value`` [..., dim] holds twice: computed before the doubling."""
    if value is None:
        return None
    if (value, interleaved) in known:
        return known[value, interleaved]
    node = value.producer()
    single = _doubled(value, interleaved)
    if single is None and node is not None and node.op_type in _ELEMENTWISE:
        source = _given_once(node.inputs[0], interleaved, known)
        factors = node.inputs[1:]
        if source is None or not all(is_scalar(factor) for factor in factors):
            return None
        assert node.graph is not None
        copy = ir.node(node.op_type, [source, *factors], node.attributes, name=f"{node.name}/once")
        single = copy.outputs[0]
        single.name, single.type, single.shape = f"{node.name}/once", value.type, source.shape
        node.graph.insert_after(node, [copy])
    if single is not None:
        known[value, interleaved] = single
    return single


def _doubled(value: ir.Value, interleaved: bool) -> ir.Value | None:
    """What ``value`` repeats: as a whole, or each number of it."""
    if not interleaved:
        joined = producer(value, "Concat")
        twice = joined is not None and len(joined.inputs) == 2 and is_last_axis(joined)
        if joined is None or not twice or joined.inputs[0] is not joined.inputs[1]:
            return None
        return joined.inputs[0]
    repeated = producer(input_of(value, "Reshape"), "Expand")
    column = producer(repeated.inputs[0], "Unsqueeze") if repeated is not None else None
    if repeated is None or column is None:
        return None
    single, sizes = column.inputs[0], integers(repeated.inputs[1])
    if single is None or single.shape is None or value.shape is None or sizes is None:
        return None
    rank = len(single.shape)
    in_last_axis = integers(column.inputs[1]) in ([-1], [rank]) and sizes == [1] * rank + [2]
    size, doubled = single.shape[-1], value.shape[-1]
    fits = isinstance(size, int) and doubled == 2 * size and len(value.shape) == rank
    return single if in_last_axis and fits else None
