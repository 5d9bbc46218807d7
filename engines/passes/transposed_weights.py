"""Multiply by weights as the checkpoint stores them, [out, in], with ONNX Runtime's ``FusedMatMul``.

Otherwise ONNX Runtime would transpose each weight when it loads the model, into memory of its own:
twice the time and no sharing of the mapped file between processes.
"""

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, RewritePass, RewriterContext, RewriteRule


def _matmul_transposed(op: RewriterContext, x: ir.Value, weight: ir.Value) -> ir.Value:
    return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))


def _fused_matmul(op: RewriterContext, x: ir.Value, weight: ir.Value) -> ir.Value:
    return op.FusedMatMul(x, weight, transB=1, _domain="com.microsoft")


def _is_weight(_: MatchContext, weight: ir.Value, **__: object) -> bool:
    return weight.is_initializer()


def fuse_transposed_weights(model: ir.Model) -> None:
    """Replace MatMul(x, Transpose(weight)) by FusedMatMul(x, weight, transB=1), in place."""
    rule = RewriteRule(_matmul_transposed, _fused_matmul, _is_weight)
    RewritePass([rule])(model)
