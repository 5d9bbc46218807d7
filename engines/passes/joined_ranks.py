"""The ranks of a tensor-parallel graph as one graph, in which each AllReduce is a Sum over them.

It takes and gives what the whole graph did; each rank has its own heads of the KV buffers. So one
process runs, and checks, what several are to run together.
"""

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.all_reduce import all_reduces
from engines.passes.insertion import Inserter
from engines.passes.replacement import replace
from engines.passes.sizes import static_size
from serving.contract import LOGITS

_HEADS = 1  # of [batch, kv_heads, max_sequence, head_dim]


def join_ranks(models: Sequence[ir.Model]) -> ir.Model:
    """All ranks' graphs, given in their order, in lock-step in one; they stay as they are.

    Every rank computes the logits, and all count: the result is their mean.
    """
    joined, *others = [model.clone() for model in models]
    graphs = [joined.graph, *(model.graph for model in others)]
    if not others:
        return joined
    inputs = list(zip(*(graph.inputs for graph in graphs), strict=True))
    outputs = list(zip(*(graph.outputs for graph in graphs), strict=True))
    boundaries = list(zip(*map(all_reduces, (joined, *others)), strict=True))
    for rank, graph in enumerate(graphs[1:], start=1):
        _move(graph, joined.graph, f"rank{rank}")
    for position, values in enumerate(inputs):
        joined.graph.inputs[position] = _divided(joined.graph, values)
    for position, values in enumerate(outputs):
        joined.graph.outputs[position] = _gathered(joined.graph, values)
    for nodes in boundaries:
        _meet(joined.graph, nodes)
    joined.graph.sort()
    common.RemoveUnusedFunctionsPass()(joined)  # type: ignore[no-untyped-call]
    return joined


def _move(graph: ir.Graph, joined: ir.Graph, prefix: str) -> None:
    """Move a rank's nodes and weights; what has the same numbers as the first rank's is shared."""
    for value in list(graph.initializers.values()):
        assert value.name is not None
        first = joined.initializers.get(value.name)
        if first is not None and first.const_value is value.const_value:
            value.replace_all_uses_with(first)
            continue
        del graph.initializers[value.name]
        value.name = f"{prefix}/{value.name}"
        joined.register_initializer(value)
    graph.outputs.clear()
    nodes = list(graph)
    graph.remove(nodes)
    for node in nodes:
        node.name = f"{prefix}/{node.name}"
        for output in node.outputs:
            output.name = f"{prefix}/{output.name}"
    joined.extend(nodes)


def _divided(joined: ir.Graph, values: Sequence[ir.Value]) -> ir.Value:
    """One input for those of all ranks: KV buffers are divided by heads, others are the same."""
    first = values[0]
    assert first.shape is not None
    if len(first.shape) < 4:
        for value in values[1:]:
            value.replace_all_uses_with(first)
        return first
    heads = [static_size(value, _HEADS) for value in values]
    whole = ir.Value(name=first.name, shape=_with_heads(first, sum(heads)), type=first.type)
    insert = Inserter(joined, joined[0], f"{first.name}/ranks")
    sizes = insert.integers(heads)
    parts = insert.node("Split", [whole, sizes], num_outputs=len(heads), axis=_HEADS).outputs
    for value, part in zip(values, parts, strict=True):
        part.shape, part.type = value.shape, value.type
        value.replace_all_uses_with(part)
    return whole


def _gathered(joined: ir.Graph, values: Sequence[ir.Value]) -> ir.Value:
    """One output for those of all ranks: the logits' mean, or the heads of a KV buffer."""
    first = values[0]
    name = str(first.name)
    insert = Inserter(joined, joined[-1], f"{name}/ranks")
    if name == LOGITS:
        whole = insert.value("Mean", values)
        whole.shape = first.shape
    else:
        whole = insert.value("Concat", values, axis=_HEADS)
        whole.shape = _with_heads(first, sum(static_size(value, _HEADS) for value in values))
    whole.type = first.type
    first.name, whole.name = f"rank0/{name}", name
    return whole


def _with_heads(buffer: ir.Value, heads: int) -> ir.Shape:
    assert buffer.shape is not None
    return ir.Shape([size if axis != _HEADS else heads for axis, size in enumerate(buffer.shape)])


def _meet(joined: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Put one Sum in the place of the AllReduce nodes that stand for one boundary."""
    insert = Inserter(joined, nodes[0], f"{nodes[0].name}/ranks")
    total = insert.value("Sum", [node.inputs[0] for node in nodes])
    for node in reversed(nodes):  # the first rank's name stays
        replace(node.outputs[0], total)
    joined.remove(nodes, safe=True)
