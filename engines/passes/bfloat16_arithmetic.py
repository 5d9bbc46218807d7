"""Compute bfloat16 arithmetic in float32 and round the result, for ONNX Runtime's CPU kernels.

They have no bfloat16 arithmetic; PyTorch's kernels do the same thing inside.
"""

import onnx_ir as ir

from engines.passes.insertion import Inserter

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Exp", "CumSum"})


def widen_bfloat16_arithmetic(model: ir.Model) -> None:
    """Cast inputs of bfloat16 arithmetic to float32 and results back, in place."""
    for node in list(model.graph):
        result = node.outputs[0]
        if node.op_type not in _ARITHMETIC or result.dtype != ir.DataType.BFLOAT16:
            continue
        insert = Inserter(model.graph, node, f"{node.name}/widened")
        for position, source in enumerate(node.inputs):
            if source is not None and source.dtype == ir.DataType.BFLOAT16:
                wide = insert.value("Cast", [source], to=ir.DataType.FLOAT)
                wide.shape, wide.dtype = source.shape, ir.DataType.FLOAT
                node.replace_input_with(position, wide)
        readers = list(result.uses())
        result.type = ir.TensorType(ir.DataType.FLOAT)
        rounded = insert.value("Cast", [result], to=ir.DataType.BFLOAT16)
        rounded.shape, rounded.dtype = result.shape, ir.DataType.BFLOAT16
        for use in readers:
            use.node.replace_input_with(use.idx, rounded)
    model.graph.sort()
