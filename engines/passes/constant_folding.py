"""Compute what doesn't depend on the inputs, drop arithmetic and casts that change nothing."""

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.rules.common import (
    cast_cast_rule,
    no_op_cast_rule,
    transpose_transpose_rule,
)

from engines.passes.fusion import fuse
from engines.passes.static_reshapes import same_sizes

_LARGEST = 1 << 16  # elements; vectors of the model's width are folded, matrices never are
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


def fold_constants(model: ir.Model) -> None:
    """Replace small computed constants by initialisers, such as a norm's 1 + weight, in place.

    Matrices stay as the checkpoint stores them.
    """
    fold_constants_ir(
        model,
        onnx_shape_inference=False,
        input_size_limit=_LARGEST,
        output_size_limit=_LARGEST,
        should_fold=lambda node: False if _uses_matrix(node) else None,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def drop_neutral_nodes(model: ir.Model) -> None:
    """Drop sums with 0, products with 1 and casts that another makes needless, in place."""
    for node in list(model.graph):
        kept = _unchanged_input(node)
        if kept is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(kept)
            model.graph.remove(node, safe=True)
    fuse(model, [no_op_cast_rule, cast_cast_rule, transpose_transpose_rule])
    common.IdentityEliminationPass()(model)


def _uses_matrix(node: ir.Node) -> bool:
    return any(
        value is not None
        and value.is_initializer()
        and value.shape is not None
        and len(value.shape) > 1
        for value in node.inputs
    )


def _unchanged_input(node: ir.Node) -> ir.Value | None:
    """The input that an arithmetic node gives out as it is."""
    if node.op_type not in _NEUTRAL or node.domain != "":
        return None
    first, second = node.inputs
    pairs = [(first, second)]
    if node.op_type in ("Add", "Mul"):
        pairs.append((second, first))
    for kept, other in pairs:
        if kept is None or other is None or kept.shape is None:
            continue
        shape = node.outputs[0].shape
        same = shape is not None and same_sizes(kept.shape, shape)
        if same and _is_number(other, _NEUTRAL[node.op_type]):
            return kept
    return None


def _is_number(value: ir.Value, number: float) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.size == 1 and float(tensor.numpy().item()) == number
