"""Lower ``Attention`` over a buffer to ONNX Runtime's ``GroupQueryAttention``.

The standard operator computes over the whole buffer; this one stops at each row's valid length and
updates the buffer itself, so the two ``TensorScatter`` nodes go too. Takes plain causal attention
and sliding windows; any other mask is left to the standard operator. An int8 buffer is read as it
is, without a floating-point copy.
"""

import onnx_ir as ir

from engines.passes.cache_updates import CacheUpdate, find_cache_update
from engines.passes.insertion import Inserter, Lengths, insert_lengths
from engines.passes.replacement import replace
from engines.passes.sizes import known_type, static_size
from engines.passes.token_layout import replace_heads_first, tokens_first
from serving.contract import WINDOW_METADATA

_MICROSOFT = "com.microsoft"
_INT8_CACHE: dict[str, str | int] = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}


def lower_to_group_query_attention(model: ir.Model) -> None:
    """Replace every eligible Attention node and its two TensorScatter nodes, in place."""
    lengths = None
    for node in list(model.graph):
        if node.op_type == "Attention":
            updates = _eligible_updates(node)
            if updates is not None:
                lengths = lengths or insert_lengths(model.graph)
                _replace(model.graph, node, *updates, lengths)
                model.graph.opset_imports[_MICROSOFT] = 1


def _eligible_updates(node: ir.Node) -> tuple[CacheUpdate, CacheUpdate] | None:
    """The updates of the key and value buffer of a node that the lowered operator can stand for."""
    key, value = (find_cache_update(source) for source in node.inputs[1:3])
    if key is None or value is None:
        return None
    if static_size(key.buffer, 3) != static_size(value.buffer, 3):
        return None
    if not (key.is_read_by(node) and value.is_read_by(node)):
        return None  # another layer reads this cache too
    quantized = {key.scale is not None, value.scale is not None}
    if quantized != {False} and (
        quantized != {True} or known_type(node.outputs[0]) != ir.DataType.FLOAT
    ):
        return None  # an int8 buffer, for both or none, takes float32 queries
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    plain = mask is None and node.attributes.get_int("is_causal", 0) == 1
    return (key, value) if plain or WINDOW_METADATA in node.metadata_props else None


def _replace(
    graph: ir.Graph, node: ir.Node, key: CacheUpdate, value: CacheUpdate, lengths: Lengths
) -> None:
    result = node.outputs[0]
    heads, kv_heads = static_size(result, 1), static_size(key.buffer, 1)
    head_dim = static_size(key.buffer, 3)
    insert = Inserter(graph, node, node.name or "attention")

    query, keys, values = (
        tokens_first(insert, source) for source in (_query(node), key.tokens, value.tokens)
    )
    packed = _packed(query, keys, values)
    window = node.metadata_props.get(WINDOW_METADATA)
    attention = insert.node(
        "GroupQueryAttention",
        [
            *([query, keys, values] if packed is None else [packed, None, None]),
            key.buffer,
            value.buffer,
            lengths.last_indices,
            lengths.total_scalar,
            *([None] * 5),
            key.scale,
            value.scale,
            *([None] * 2),
            lengths.new,
        ],
        domain=_MICROSOFT,
        num_outputs=3,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=node.attributes.get_float("scale", head_dim**-0.5),
        softcap=node.attributes.get_float("softcap", 0.0),
        local_window_size=int(window) if window is not None else -1,
        **(_INT8_CACHE if key.scale is not None else {}),
    )
    output, present_key, present_value = attention.outputs
    if result.shape is not None:
        output.shape = ir.Shape([result.shape[0], result.shape[2], heads * head_dim])
    output.type = result.type
    replace_heads_first(insert, result, output)
    graph.remove(node, safe=True)
    for update, present in ((key, present_key), (value, present_value)):
        for link in reversed(update.chain[1:]):
            graph.remove(link, safe=True)
        replace(update.present, present)
        graph.remove(update.scatter, safe=True)


def _query(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _packed(query: ir.Value, keys: ir.Value, values: ir.Value) -> ir.Value | None:
    """What one Split makes these three of, in this order: the output of a merged projection."""
    split = query.producer()
    if split is None or split.op_type != "Split":
        return None
    if split.attributes.get_int("axis", 0) not in (-1, 2):
        return None
    return split.inputs[0] if tuple(split.outputs) == (query, keys, values) else None
