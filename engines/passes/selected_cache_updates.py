"""Update int8 KV buffers by selecting, for each position, the new entry or the old one.

TensorRT's cache update takes floating-point buffers only. A selection goes over the whole buffer,
but never writes outside of it, as a scatter of padding would.
"""

import numpy as np
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.passes.insertion import Inserter, take_place
from engines.passes.sizes import static_size


def select_integer_updates(model: ir.Model) -> None:
    """Spell out every TensorScatter along axis 2 of an int8 buffer of fixed capacity, in place."""
    for node in list(model.graph):
        if node.op_type == "TensorScatter" and node.outputs[0].dtype == ir.DataType.INT8:
            _select(model.graph, node)


def _select(graph: ir.Graph, node: ir.Node) -> None:
    past, new, lengths = node.inputs[:3]
    heads, capacity, dim = (static_size(past, axis) for axis in (1, 2, 3))
    every = add_initializer(graph, f"positions_{capacity}", np.arange(capacity)[None])
    insert = Inserter(graph, node, f"{node.name}/selected")
    starts = insert.value("Unsqueeze", [lengths, insert.integers([1])])
    offset = insert.value("Sub", [every, starts])  # [batch, capacity], from the first new one
    count = insert.value("Shape", [new], start=2, end=3)
    last = insert.value("Sub", [count, insert.integers([1])])
    nearest = insert.value("Max", [offset, insert.integers([0])])
    nearest = insert.value("Min", [nearest, last])
    is_new = insert.value("Equal", [offset, nearest])
    axes = insert.integers([1, 3])
    nearest = insert.value("Unsqueeze", [nearest, axes])
    nearest = insert.value("Expand", [nearest, insert.integers([1, heads, capacity, dim])])
    spread = insert.value("GatherElements", [new, nearest], axis=2)
    is_new = insert.value("Unsqueeze", [is_new, axes])
    take_place(graph, node, insert.value("Where", [is_new, spread, past]))
