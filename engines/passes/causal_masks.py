"""Say as a mask which keys causal attention sees, for engines where nothing else says it safely."""

import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.sizes import static_size
from serving.contract import INPUT_IDS, cached_layers, past_name


def mask_causal_attention(model: ir.Model) -> None:
    """Give causal Attention nodes a boolean mask in place of kind and KV lengths, in place.

    The mask is [batch, 1, sequence, max_sequence], the same for all layers: a row's new token i
    sees its past and the new tokens up to i. Raises ValueError for a causal node with a mask of its
    own or without KV lengths, and where the KV buffers have no fixed capacity.
    """
    masks: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != "Attention" or not node.attributes.get_int("is_causal", 0):
            continue
        mask, lengths = (*node.inputs, *[None] * 7)[3:7:3]
        if mask is not None or lengths is None:
            raise ValueError(f"{node.name}: attention with a mask of an unknown kind")
        if lengths not in masks:
            masks[lengths] = _causal_mask(model.graph, node, lengths)
        node.resize_inputs(4)
        node.replace_input_with(3, masks[lengths])
        del node.attributes["is_causal"]


def _causal_mask(graph: ir.Graph, node: ir.Node, lengths: ir.Value) -> ir.Value:
    """Boolean [batch, 1, sequence, max_sequence], for rows that end at ``lengths``."""
    insert = Inserter(graph, node, "causal_mask")
    inputs = {value.name: value for value in graph.inputs}
    keys = inputs[past_name(cached_layers(inputs)[0], "key")]
    zero, one = insert.integers(0), insert.integers(1)
    sequence = insert.value("Shape", [inputs[INPUT_IDS]], start=1, end=2)
    new = insert.value("Range", [zero, insert.value("Squeeze", [sequence]), one])
    cached = insert.value("Range", [zero, insert.integers(static_size(keys, 2)), one])
    past = insert.value("Sub", [lengths, sequence])
    past = insert.value("Unsqueeze", [past, insert.integers([1, 2, 3])])
    last_seen = insert.value("Add", [past, insert.value("Unsqueeze", [new, insert.integers([1])])])
    mask = insert.value("LessOrEqual", [cached, last_seen])
    mask.type = ir.TensorType(ir.DataType.BOOL)
    return mask
