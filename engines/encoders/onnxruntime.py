"""The onnxruntime target for encoders: lowers the standard graph for ONNX Runtime on the CPU."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.block_quantized_weights import lower_block_quantized_weights
from engines.passes.integer_matmul import lower_integer_matmul
from engines.passes.transposed_weights import fuse_transposed_weights

PASSES = (
    lower_integer_matmul,
    lower_block_quantized_weights,
    fuse_transposed_weights,
)


def lower_encoder(model: ir.Model) -> None:
    """Lower the standard graph of an encoder for ONNX Runtime, in place."""
    for lowering in PASSES:
        lowering(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
