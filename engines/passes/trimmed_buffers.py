"""Make what reads the KV buffers stop at the longest row's valid length.

Attention that no fused operator takes (ALiBi, sinks, chunked windows, keys and values of different
size) is computed by standard operators, which would go over the whole buffer. Everything that reads
a buffer gets its valid part instead, and every mask is built for that length, so that the cost
follows the tokens and not the capacity.
"""

import onnx_ir as ir

from engines.passes.insertion import Inserter, insert_lengths
from serving.contract import PARTS, cached_layers, past_name


def trim_buffers(model: ir.Model) -> None:
    """Slice each updated buffer where it is read, and shorten masks to match; edits in place."""
    graph = model.graph
    updates = [node for node in graph if node.op_type == "TensorScatter"]
    if not updates:
        return
    total = insert_lengths(graph).total
    for update in updates:
        present = update.outputs[0]
        readers = list(present.uses())
        insert = Inserter(graph, update, f"{update.name}/trimmed")
        valid = insert.value("Slice", [present, insert.integers([0]), total, insert.integers([2])])
        valid.type = present.type
        for use in readers:
            use.node.replace_input_with(use.idx, valid)
    # All of them: what reads a capacity may read it off a buffer that another pass lowered.
    layers = cached_layers(value.name for value in graph.inputs)
    pasts = {past_name(layer, part) for layer in layers for part in PARTS}
    buffers = {value for value in graph.inputs if value.name in pasts}
    for node in list(graph):
        if _is_length_of(node, buffers):
            node.outputs[0].replace_all_uses_with(total)
            graph.remove(node, safe=True)
    graph.sort()


def _is_length_of(node: ir.Node, buffers: set[ir.Value]) -> bool:
    """Whether a node reads the capacity off a buffer's shape."""
    return (
        node.op_type == "Shape"
        and node.inputs[0] in buffers
        and node.attributes.get_int("start", 0) == 2
        and node.attributes.get_int("end", 4) == 3
    )
