"""Spell out in primitives the attention that an engine's own doesn't cover.

That is attention with a soft cap, and with keys and values of different head size.
"""

import numpy as np
import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.sizes import known_type, static_size

_LOWEST = float(np.finfo(np.float32).min)


def spell_out_attention(model: ir.Model) -> None:
    """Replace such Attention nodes by MatMul, Tanh and Softmax, in place.

    Their scale must be 1 (see scaled_queries.py) and they must have a mask (see causal_masks.py).
    Scores are computed in the model's type, capped
    and normalised in float32. What a mask hides gets the lowest finite score, not minus infinity: a
    padded row that sees nothing must not become NaN, for it is written to the cache. Raises
    ValueError for an additive mask beside a soft cap.
    """
    for node in list(model.graph):
        if node.op_type == "Attention" and (_softcap(node) or _sizes_differ(node)):
            _spell_out(model.graph, node)


def _softcap(node: ir.Node) -> float:
    return node.attributes.get_float("softcap", 0.0)


def _sizes_differ(node: ir.Node) -> bool:
    return static_size(node.inputs[1], 3) != static_size(node.inputs[2], 3)


def _spell_out(graph: ir.Graph, node: ir.Node) -> None:
    assert node.attributes.get_float("scale", 0.0) == 1.0
    query, key, value = node.inputs[:3]
    result = node.outputs[0]
    heads, kv_heads, softcap = static_size(result, 1), static_size(key, 1), _softcap(node)
    insert = Inserter(graph, node, f"{node.name}")

    # The query heads of one KV head become rows of one product, so that no key is repeated.
    grouped, split = insert.integers([0, kv_heads, -1, 0]), insert.integers([0, heads, -1, 0])
    keys = insert.value("Transpose", [key], perm=[0, 1, 3, 2])
    scores = insert.value("MatMul", [insert.value("Reshape", [query, grouped]), keys])
    scores = insert.value("Reshape", [scores, split])
    scores = insert.value("Cast", [scores], to=ir.DataType.FLOAT)
    if softcap:
        scores = insert.value("Mul", [scores, insert.number(1.0 / softcap)])
        scores = insert.value("Mul", [insert.value("Tanh", [scores]), insert.number(softcap)])
    scores = _masked(insert, node, scores)
    weights = insert.value("Softmax", [scores], axis=-1)
    weights = insert.value("Cast", [weights], to=known_type(result))
    output = insert.value("MatMul", [insert.value("Reshape", [weights, grouped]), value])
    output = insert.value("Reshape", [output, split])
    output.shape, output.type = result.shape, result.type
    result.replace_all_uses_with(output)
    graph.remove(node, safe=True)


def _masked(insert: Inserter, node: ir.Node, scores: ir.Value) -> ir.Value:
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None or node.attributes.get_int("is_causal", 0) == 1:
        raise ValueError(f"{node.name}: attention with a mask of an unknown kind")
    if known_type(mask) == ir.DataType.BOOL:
        return insert.value("Where", [mask, scores, insert.number(_LOWEST)])
    if _softcap(node):
        raise ValueError(f"{node.name}: a soft cap with an additive mask")
    return insert.value("Add", [scores, insert.value("Cast", [mask], to=ir.DataType.FLOAT)])
