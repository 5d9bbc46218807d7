"""Multiply by weights as the checkpoint stores them, [out, in], with ``FusedMatMul``.

Otherwise ONNX Runtime would transpose each weight when it loads the model, into memory of its own:
twice the time and no sharing of the mapped file between processes.
"""

import onnx_ir as ir


def fuse_transposed_weights(model: ir.Model) -> None:
    """Turn MatMul(x, Transpose(weight)) into FusedMatMul(x, weight, transB=1), in place."""
    for node in model.graph:
        weight = _transposed_weight(node.inputs[1]) if node.op_type == "MatMul" else None
        if weight is not None:
            node.op_type, node.domain = "FusedMatMul", "com.microsoft"
            node.replace_input_with(1, weight)
            node.attributes["transB"] = ir.AttrInt64("transB", 1)
            model.graph.opset_imports["com.microsoft"] = 1


def _transposed_weight(value: ir.Value | None) -> ir.Value | None:
    """The weight that ``value`` is the transpose of."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    weight = node.inputs[0]
    is_swap = list(node.attributes.get_ints("perm", [])) == [1, 0]
    return weight if weight.is_initializer() and is_swap else None
