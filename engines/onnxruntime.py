"""The onnxruntime target: lowers the standard graph and writes it for ONNX Runtime.

Graphs of encoders, which have no cache, have passes of their own.
"""

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.bfloat16_arithmetic import widen_bfloat16_arithmetic
from engines.passes.block_quantized_weights import lower_block_quantized_weights
from engines.passes.device_lengths import keep_lengths_on_device
from engines.passes.embeddings import expose_embeddings
from engines.passes.encoder_attention import fuse_encoder_attention
from engines.passes.fused_linears import fuse_linears
from engines.passes.gated_activations import fuse_gated_activations
from engines.passes.group_query_attention import lower_to_group_query_attention
from engines.passes.integer_matmul import lower_integer_matmul
from engines.passes.separate_projections import separate_projections
from engines.passes.transposed_weights import fuse_transposed_weights
from engines.passes.trimmed_buffers import trim_buffers
from engines.passes.trimmed_sources import trim_sources
from engines.passes.widened_float8 import widen_float8_weights
from serving.contract import CUDA_MODEL_FILE, PAST_LENGTHS

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
ENCODER_FILE = "encoder.onnx"

PASSES = (
    widen_float8_weights,
    lower_integer_matmul,
    lower_block_quantized_weights,
    lower_to_group_query_attention,
    trim_buffers,
    trim_sources,
    fuse_transposed_weights,
    widen_bfloat16_arithmetic,
    fuse_gated_activations,
    expose_embeddings,
)
ENCODER_PASSES = (
    lower_integer_matmul,
    lower_block_quantized_weights,
    fuse_encoder_attention,
    separate_projections,
    fuse_linears,
)


def lower(model: ir.Model) -> None:
    """Lower the standard graph of a decoder or an encoder for ONNX Runtime, in place."""
    is_decoder = any(value.name == PAST_LENGTHS for value in model.graph.inputs)
    for lowering in PASSES if is_decoder else ENCODER_PASSES:
        lowering(model)
    # Several passes may have computed the same lengths, under the same names.
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def write(model: ir.Model, directory: Path, name: str = MODEL_FILE) -> None:
    """Write the graph and, beside it, the weights, page-aligned so that they can be mapped.

    Every graph imports the domain of the operators that ONNX Runtime fuses others into: it misses
    the import where kernels for that domain are registered.
    """
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    ir.save(
        model, directory / name, external_data=f"{name}.data", alignment=4096, align_threshold=0
    )


def write_for_cuda(directory: Path) -> None:
    """Write the graph in ``directory`` once more, for CUDA: the weights are those beside it."""
    model = ir.load(directory / MODEL_FILE)
    keep_lengths_on_device(model)
    ir.save(model, directory / CUDA_MODEL_FILE)
