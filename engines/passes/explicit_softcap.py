"""Spell out attention with a soft cap in primitives, for engines whose attention has none."""

import numpy as np
import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.scalars import scalar
from engines.passes.sizes import known_type, static_size

_LOWEST = float(np.finfo(np.float32).min)


def spell_out_softcap(model: ir.Model) -> None:
    """Replace every Attention node that has a soft cap by MatMul, Tanh and Softmax, in place.

    Its scale must be 1 (see scaled_queries.py). Scores are computed in the model's type and capped
    and normalised in float32. What a mask hides gets the lowest finite score, not minus infinity: a
    padded row that sees nothing must not become NaN, for it is written to the cache.
    """
    for node in list(model.graph):
        if node.op_type == "Attention" and node.attributes.get_float("softcap", 0.0) != 0.0:
            _spell_out(model.graph, node)


def _spell_out(graph: ir.Graph, node: ir.Node) -> None:
    assert node.attributes.get_float("scale", 0.0) == 1.0
    query, key, value = node.inputs[:3]
    result = node.outputs[0]
    heads, kv_heads = static_size(result, 1), static_size(key, 1)
    insert = Inserter(graph, node, f"{node.name}")
    softcap = node.attributes.get_float("softcap")

    # The query heads of one KV head become rows of one product, so that no key is repeated.
    grouped, split = insert.integers([0, kv_heads, -1, 0]), insert.integers([0, heads, -1, 0])
    keys = insert.value("Transpose", [key], perm=[0, 1, 3, 2])
    scores = insert.value("MatMul", [insert.value("Reshape", [query, grouped]), keys])
    scores = insert.value("Reshape", [scores, split])
    scores = insert.value("Cast", [scores], to=ir.DataType.FLOAT)
    scores = insert.value("Mul", [scores, scalar(graph, 1.0 / softcap)])
    scores = insert.value("Mul", [insert.value("Tanh", [scores]), scalar(graph, softcap)])
    scores = insert.value("Where", [_mask(insert, node), scores, scalar(graph, _LOWEST)])
    weights = insert.value("Softmax", [scores], axis=-1)
    weights = insert.value("Cast", [weights], to=known_type(result))
    output = insert.value("MatMul", [insert.value("Reshape", [weights, grouped]), value])
    output = insert.value("Reshape", [output, split])
    output.shape, output.type = result.shape, result.type
    result.replace_all_uses_with(output)
    graph.remove(node, safe=True)


def _mask(insert: Inserter, node: ir.Node) -> ir.Value:
    """Boolean [batch, 1, sequence, max_sequence]: the node's own mask, or the causal one."""
    query, key, _, mask, _, _, lengths = (*node.inputs, *[None] * 7)[:7]
    causal = node.attributes.get_int("is_causal", 0) == 1
    if mask is not None and known_type(mask) == ir.DataType.BOOL and not causal:
        return mask
    if mask is not None or lengths is None or not causal:
        raise ValueError(f"{node.name}: a soft cap with a mask of an unknown kind")
    one = insert.integers(1)

    def indices(source: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """The length of axis 2, int64 [1], and its indices, int64 [length]."""
        length = insert.value("Shape", [source], start=2, end=3)
        return length, insert.value(
            "Range", [insert.integers(0), insert.value("Squeeze", [length]), one]
        )

    sequence, rows = indices(query)
    _, columns = indices(key)
    past = insert.value("Sub", [lengths, sequence])
    past = insert.value("Unsqueeze", [past, insert.integers([1, 2, 3])])
    rows = insert.value("Unsqueeze", [rows, insert.integers([1])])
    return insert.value("LessOrEqual", [columns, insert.value("Add", [past, rows])])
