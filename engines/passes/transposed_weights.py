"""Multiply by weights of the form [out, in] with ``FusedMatMul``.

Where a checkpoint stores them so, ONNX Runtime would otherwise transpose each weight when it loads
the model, into memory of its own. Where it stores them [in, out], they are turned round when they
are written: a row of activations times rows of the weight runs at the speed of the memory, a row
times columns doesn't.
"""

import numpy as np
import onnx_ir as ir

from engines.initializers import add_lazy_initializer
from engines.linears import Linear, find_linears


def fuse_transposed_weights(model: ir.Model) -> None:
    """Turn products with float weights into FusedMatMul(x, weight, transB=1), in place.

    A weight [in, out] that something else reads too is left as it is.
    """
    for linear in list(find_linears(model)):
        if linear.dequantize is not None:
            continue
        if not linear.transposed and len(linear.weight.uses()) > 1:
            continue
        weight = stored_by_output(model.graph, linear)
        node = linear.matmul
        node.op_type, node.domain = "FusedMatMul", "com.microsoft"
        node.replace_input_with(1, weight)
        node.attributes["transB"] = ir.AttrInt64("transB", 1)
        model.graph.opset_imports["com.microsoft"] = 1


def stored_by_output(graph: ir.Graph, linear: Linear) -> ir.Value:
    """The weight as [out, in], put together when it is read if it is stored otherwise."""
    if linear.transposed:
        return linear.weight
    stored = linear.weight.const_value
    assert stored is not None
    return add_lazy_initializer(
        graph,
        f"{linear.name}.turned_round",
        (linear.outputs, linear.inputs),
        stored.dtype,
        lambda: np.ascontiguousarray(stored.numpy().T),
    )
