"""Lower attention over whole texts to ONNX Runtime's ``MultiHeadAttention``.

It reads queries, keys and values as projections write them, and what is padding as one row a text
instead of a mask for each pair of tokens. The standard operator turns all of them round first.
"""

import numpy as np
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.passes.insertion import Inserter
from engines.passes.matching import producer
from engines.passes.sizes import known_type, static_size
from engines.passes.token_layout import replace_heads_first, tokens_first

_MICROSOFT = "com.microsoft"
_LOWEST = float(np.finfo(np.float32).min)


def lower_to_multi_head_attention(model: ir.Model) -> None:
    """Replace every Attention node without a cache, soft cap or shared key heads, in place."""
    padding: dict[ir.Value, ir.Value] = {}
    biases: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "Attention" and node.domain == "" and _is_eligible(node):
            _replace(model.graph, node, padding, biases)
            model.graph.opset_imports[_MICROSOFT] = 1


def _is_eligible(node: ir.Node) -> bool:
    query, key, value = node.inputs[:3]
    has_cap = node.attributes.get_float("softcap", 0.0) != 0.0
    is_causal = node.attributes.get_int("is_causal", 0) != 0
    others = [extra for extra in node.inputs[4:] if extra is not None]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if has_cap or is_causal or others or mask is None or len(node.outputs) != 1:
        return False
    if mask.dtype not in (ir.DataType.BOOL, known_type(node.outputs[0])):
        return False
    shapes = [value.shape if value is not None else None for value in (query, key, value)]
    return len({(shape[1], shape[3]) for shape in shapes if shape is not None}) == 1


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    padding: dict[ir.Value, ir.Value],
    biases: dict[ir.Value, ir.Value],
) -> None:
    result, mask = node.outputs[0], node.inputs[3]
    assert mask is not None
    heads, dim = static_size(result, 1), static_size(result, 3)
    insert = Inserter(graph, node, node.name or "attention")
    keys_seen = _keys_seen(mask)
    key_padding, bias = None, None
    if keys_seen is not None:
        if keys_seen not in padding:
            padding[keys_seen] = _key_padding(insert, keys_seen)
        key_padding = padding[keys_seen]
    else:
        if mask not in biases:
            biases[mask] = _additive(graph, insert, mask, known_type(result))
        bias = biases[mask]
    sources = [tokens_first(insert, value) for value in node.inputs[:3] if value is not None]
    output = insert.value(
        "MultiHeadAttention",
        [*sources, None, key_padding, bias],
        domain=_MICROSOFT,
        num_heads=heads,
        scale=node.attributes.get_float("scale", dim**-0.5),
        mask_filter_value=_LOWEST,
    )
    if result.shape is not None:
        output.shape = ir.Shape([result.shape[0], result.shape[2], heads * dim])
    output.type = result.type
    replace_heads_first(insert, result, output)
    graph.remove(node, safe=True)


def _keys_seen(mask: ir.Value) -> ir.Value | None:
    """What a boolean mask repeats for all queries, [batch, 1, 1, sequence], if it does."""
    expand = producer(mask, "Expand")
    rows = expand.inputs[0] if expand is not None else None
    if rows is None or rows.dtype != ir.DataType.BOOL or rows.shape is None:
        return None
    return rows if len(rows.shape) == 4 and tuple(rows.shape[1:3]) == (1, 1) else None


def _key_padding(insert: Inserter, seen: ir.Value) -> ir.Value:
    """int32 [batch, sequence]: 1 for a token."""
    flat = insert.value("Squeeze", [seen, insert.integers([1, 2])])
    return insert.value("Cast", [flat], to=ir.DataType.INT32)


def _additive(graph: ir.Graph, insert: Inserter, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A mask as what is added to scores: 0 where it lets see."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    lowest = np.finfo(dtype.numpy()).min
    numbers = {"shown": np.zeros((), dtype.numpy()), "hidden": np.array(lowest, dtype.numpy())}
    shown, hidden = (add_initializer(graph, f"{dtype.name}_{n}", a) for n, a in numbers.items())
    return insert.value("Where", [mask, shown, hidden])
