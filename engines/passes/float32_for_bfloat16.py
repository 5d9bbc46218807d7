"""Turn a bfloat16 graph into float32, to run it where there are no bfloat16 kernels.

The weights keep their bfloat16 values; only the arithmetic between them is wider.
"""

import numpy as np
import onnx_ir as ir

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen_bfloat16(model: ir.Model) -> None:
    """Replace bfloat16 by float32 in every tensor, value and Cast, in place."""
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == _NARROW:
            value.const_value = _widened(tensor)
    for node in graph:
        if node.op_type == "Cast" and node.attributes.get_int("to") == _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", int(_WIDE))
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    for value in values:
        if value.dtype == _NARROW:
            value.type = ir.TensorType(_WIDE)  # a copy of the graph may share the old one


def _widened(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name),
        dtype=_WIDE,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )
