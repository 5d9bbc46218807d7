"""The TensorRT targets' passes. What comes out is standard ONNX still: any runtime can check it."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.causal_masks import mask_causal_attention
from engines.passes.constant_indices import slice_constant_indices
from engines.passes.explicit_attention import spell_out_attention
from engines.passes.fixed_capacity import fix_capacity, name_axes
from engines.passes.integer_weight_layout import lay_out_integer_weights
from engines.passes.scaled_queries import scale_queries
from engines.passes.selected_cache_updates import select_integer_updates
from engines.passes.separate_projections import separate_projections

PASSES = (
    mask_causal_attention,
    scale_queries,
    spell_out_attention,
    separate_projections,
    slice_constant_indices,
    lay_out_integer_weights,
    select_integer_updates,
)


def lower(model: ir.Model, max_length: int, max_source: int | None = None) -> None:
    """Lower the standard graph for TensorRT, in place; lowering it again changes nothing.

    A decoder that reads a source reads ``max_source`` tokens of it at most.
    """
    fix_capacity(model, max_length, max_source)
    lower_encoder(model)


def lower_source_encoder(model: ir.Model) -> None:
    """The same for an encoder-decoder's encoder."""
    name_axes(model)
    lower_encoder(model)


def lower_encoder(model: ir.Model) -> None:
    """The same for a graph without a cache: its attention has masks as it is."""
    for lowering in PASSES:
        lowering(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.ShapeInferencePass()(model)  # what the passes made has types then, for the verifier
