"""Turn a bfloat16 or float16 graph into float32, with the same nodes under the same names.

To run bfloat16 where it has no kernels, and to see numbers that float16 can't hold. The weights
keep their values; only the arithmetic between them is wider.
"""

import numpy as np
import onnx_ir as ir

_WIDE = ir.DataType.FLOAT


def widen_floats(model: ir.Model, narrow: ir.DataType) -> None:
    """Replace ``narrow`` by float32 in every tensor, value and Cast, in place.

    A weight is widened whenever it is read, so that it takes no memory meanwhile.
    """
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == narrow:
            value.const_value = _widened(tensor)
    for node in graph:
        widen_attributes(node, narrow)
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    for value in values:
        if value.dtype == narrow:
            value.type = ir.TensorType(_WIDE)  # a copy of the graph may share the old one


def widen_attributes(node: ir.Node, narrow: ir.DataType) -> None:
    """Widen the type that a Cast gives and the number that ConstantOfShape repeats."""
    if node.op_type == "Cast" and node.attributes.get_int("to") == narrow:
        node.attributes["to"] = ir.AttrInt64("to", int(_WIDE))
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == narrow:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))


def _widened(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name),
        dtype=_WIDE,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )
