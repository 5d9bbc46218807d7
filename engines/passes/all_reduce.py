"""The sum over the ranks of a tensor-parallel graph, as a node: the boundary where ranks meet.

No standard operator says it. The node is a function that the graph defines as the identity, which
is what the sum over one rank is, so that every checker and parser reads a rank's graph. Who runs
one puts the sum there: a collective layer (engines/tensorrt/collectives.py), or a Sum over the
ranks' values in one graph (joined_ranks.py). Run alone, a rank's graph has its own part only.
"""

from collections.abc import Iterator

import onnx.parser
import onnx_ir as ir

from engines.passes.own_operators import DOMAIN

_OPERATOR = "AllReduce"


def sum_over_ranks(model: ir.Model, partial: ir.Value, ranks: int) -> None:
    """Let the sum of all ranks' ``partial`` be used wherever ``partial`` is, in place."""
    producer = partial.producer()
    assert producer is not None
    node = ir.node(
        _OPERATOR, [partial], {"ranks": ranks}, domain=DOMAIN, name=f"{producer.name}/{_OPERATOR}"
    )
    total = node.outputs[0]
    total.name, total.shape, total.type = partial.name, partial.shape, partial.type
    partial.replace_all_uses_with(total, replace_graph_outputs=True)
    node.replace_input_with(0, partial)
    partial.name = f"{total.name}/partial"
    model.graph.insert_after(producer, [node])
    _define(model)


def all_reduces(model: ir.Model) -> Iterator[ir.Node]:
    """The graph's AllReduce nodes, in its order."""
    return (node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, _OPERATOR))


def ranks_of(node: ir.Node) -> int:
    """Over how many ranks an AllReduce node sums."""
    return node.attributes.get_int("ranks", 1)


def _define(model: ir.Model) -> None:
    """Define the operator in standard ones, once a graph."""
    function = ir.serde.deserialize_function(
        onnx.parser.parse_function(
            f"""
            <domain: "{DOMAIN}", opset_import: ["": {model.graph.opset_imports[""]}]>
            {_OPERATOR} <ranks> (partial) => (total) {{ total = Identity (partial) }}
            """
        )
    )
    model.functions.setdefault(function.identifier(), function)
    model.graph.opset_imports[DOMAIN] = 1
