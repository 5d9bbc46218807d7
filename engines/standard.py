"""The passes that every target gets: what is traced becomes a small, plain graph."""

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.constant_folding import drop_neutral_nodes, fold_constants
from engines.passes.gelu import fuse_gelu
from engines.passes.linear_from_gemm import spell_out_gemm
from engines.passes.lora_inputs import add_lora_inputs
from engines.passes.merged_projections import merge_projections
from engines.passes.normalization import fuse_normalization
from engines.passes.rotary_embedding import fuse_rotary_embedding
from engines.passes.static_reshapes import fix_reshapes

SIMPLIFICATIONS = (
    fold_constants,
    drop_neutral_nodes,
    fix_reshapes,
    spell_out_gemm,
    fuse_normalization,
    fuse_gelu,
    fuse_rotary_embedding,
)
PASSES = (*SIMPLIFICATIONS, merge_projections)


def simplify(model: ir.Model) -> None:
    """Simplify a traced graph in place; weights stay as the checkpoint has and names them.

    Every value of the result has a type and a shape.
    """
    _apply(SIMPLIFICATIONS, model)


def optimize(model: ir.Model, adapted: Collection[str] = ()) -> None:
    """Simplify a graph and merge what reads the same activations, in place.

    Fewer nodes, the same numbers, standard ONNX. A simplified graph may be given again. The modules
    that ``adapted`` names take LoRA adapters, see ``add_lora_inputs``.
    """
    _apply(PASSES, model)
    if adapted:
        add_lora_inputs(model, adapted)
        common.ShapeInferencePass()(model)


def _apply(passes: Sequence[Callable[[ir.Model], None]], model: ir.Model) -> None:
    for simplification in passes:
        simplification(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    common.ShapeInferencePass()(model)
