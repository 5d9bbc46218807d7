"""Compute in float32 what would leave the range of float16.

The largest float16 is 65504. A few activations of some models are larger (Gemma's residuals, the
products of some gates), and what is infinite once ruins every token behind it.
"""

from collections.abc import Collection

import onnx_ir as ir

from engines.passes.constant_folding import drop_neutral_nodes, fold_constants
from engines.passes.insertion import Inserter
from engines.passes.widened_floats import widen_attributes

_NARROW, _WIDE = ir.DataType.FLOAT16, ir.DataType.FLOAT
# Their buffers are float16, whatever is written to them.
_OVER_BUFFERS = frozenset({"TensorScatter", "Attention"})


def widen_to_float32(model: ir.Model, names: Collection[str]) -> None:
    """Compute these nodes, and those that read their results, in float32, in place.

    ``model`` is a float16 graph with known types; ``names`` are its nodes whose results leave the
    range. Results that stay within it are rounded to float16, with a Cast, before others read them.
    Raises ValueError for a cache update or attention among ``names``, and for an unknown name.
    """
    nodes = {node.name: node for node in model.graph}
    beyond = [nodes[name] for name in names if name in nodes]
    unknown = set(names) - nodes.keys()
    over_buffers = sorted(node.name or "" for node in beyond if node.op_type in _OVER_BUFFERS)
    if unknown or over_buffers:
        raise ValueError(f"not nodes to compute in float32: {sorted(unknown) + over_buffers}")
    wide = {output for node in beyond for output in node.outputs if output.dtype == _NARROW}
    readers = [use.node for value in wide for use in value.uses()]
    island = {*beyond, *(node for node in readers if node.op_type not in _OVER_BUFFERS)}
    widened: dict[ir.Value, ir.Value] = {}
    for node in [node for node in model.graph if node in island]:
        _widen(model.graph, node, wide, widened)
    for value in wide:
        _round_for_others(model.graph, value, island)
    model.graph.sort()
    fold_constants(model)
    drop_neutral_nodes(model)


def _widen(
    graph: ir.Graph, node: ir.Node, wide: set[ir.Value], widened: dict[ir.Value, ir.Value]
) -> None:
    """Give a node float32 inputs, and float16 results unless they are to stay ``wide``."""
    if node.op_type == "Cast":
        if node.outputs[0] in wide:
            node.attributes["to"] = ir.AttrInt64("to", int(_WIDE))
        return
    widen_attributes(node, _NARROW)
    insert = Inserter(graph, node, f"{node.name}/float32")
    for position, source in enumerate(node.inputs):
        if source is not None and source.dtype == _NARROW and source not in wide:
            if source not in widened:
                widened[source] = insert.value("Cast", [source], to=_WIDE)
                widened[source].shape = source.shape
                widened[source].type = ir.TensorType(_WIDE)
            node.replace_input_with(position, widened[source])
    for output in node.outputs:
        if output.dtype == _NARROW:
            output.type = ir.TensorType(_WIDE)
            if output not in wide:
                _round(graph, output, [(use.node, use.idx) for use in output.uses()])


def _round_for_others(graph: ir.Graph, value: ir.Value, island: set[ir.Node]) -> None:
    """Give float16, infinite where it must be, to readers that can't take float32."""
    value.type = ir.TensorType(_WIDE)
    others = [(use.node, use.idx) for use in value.uses() if use.node not in island]
    if others or value.is_graph_output():
        _round(graph, value, others)


def _round(graph: ir.Graph, value: ir.Value, readers: list[tuple[ir.Node, int]]) -> None:
    node = value.producer()
    assert node is not None
    name = f"{value.name}/float16"
    cast = ir.node("Cast", [value], {"to": _NARROW}, name=name)
    graph.insert_after(node, [cast])
    rounded = cast.outputs[0]
    rounded.name, rounded.shape, rounded.type = name, value.shape, ir.TensorType(_NARROW)
    for reader, position in readers:
        reader.replace_input_with(position, rounded)
    if value.is_graph_output():
        graph.outputs[list(graph.outputs).index(value)] = rounded
        rounded.name, value.name = value.name, f"{value.name}/float32"
