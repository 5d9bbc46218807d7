"""Clean a freshly traced graph: fold shapes and constants, drop what is unused, name what is left.

Weights stay as the checkpoint has them: a transposed use of one remains a ``Transpose`` node, which
an engine folds or fuses as it likes, and no two weights are merged because they happen to be equal.
"""

import ast
from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    cast_cast_rule,
    collapse_slice2_rule,
    collapse_slice_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    reshape_reshape_rule,
    transpose_transpose_rule,
)

from serving.contract import WINDOW_METADATA

# Constants larger than this are computed by the engine rather than stored.
_LARGEST_FOLDED = 4096
_SCOPES = "pkg.torch.onnx.name_scopes"
_ROOT = "model."  # the traced module holds the checkpoint's model under this name


def simplify(model: ir.Model, parameters: frozenset[str]) -> None:
    """Clean ``model`` in place; ``parameters`` names the initialisers from the checkpoint."""

    def should_fold(node: ir.Node) -> bool | None:
        uses_weight = any(value is not None and value.name in parameters for value in node.inputs)
        return False if uses_weight else None

    common.InlinePass()(model)
    fold_constants_ir(
        model,
        onnx_shape_inference=False,
        input_size_limit=_LARGEST_FOLDED,
        output_size_limit=_LARGEST_FOLDED,
        should_fold=should_fold,
    )
    ir.passes.Sequential(
        RewritePass(
            [
                no_op_cast_rule,
                no_op_expand_rule,
                no_op_transpose_rule,
                cast_cast_rule,
                collapse_slice_rule,
                collapse_slice2_rule,
                reshape_reshape_rule,
                transpose_transpose_rule,
            ]
        ),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    _share_equal_constants(model, parameters)
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.TopologicalSortPass(),
    )(model)
    _name_after_modules(model)


def _share_equal_constants(model: ir.Model, parameters: frozenset[str]) -> None:
    """Keep one of the small constants that are equal; never merge weights."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if name in parameters or tensor is None or tensor.size > _LARGEST_FOLDED:
            continue
        known = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if known is not value:
            value.replace_all_uses_with(known)
            del model.graph.initializers[name]


def _name_after_modules(model: ir.Model) -> None:
    """Name nodes ``module.path/Operator`` and weights as in the checkpoint; drop trace metadata."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        name = f"{_module_path(node)}/{node.op_type}".lstrip("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        _drop_trace_metadata(node)
        for position, output in enumerate(node.outputs):
            _drop_trace_metadata(output)
            if not output.is_graph_output():
                output.name = node.name if position == 0 else f"{node.name}:{position}"
    for value in list(model.graph.initializers.values()):
        _drop_trace_metadata(value)
        if value.name is not None and value.name.startswith(_ROOT):
            value.name = value.name.removeprefix(_ROOT)
    for value in model.graph.inputs:
        _drop_trace_metadata(value)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _module_path(node: ir.Node) -> str:
    """Path of the innermost module that a node was traced in."""
    if _SCOPES not in node.metadata_props:  # made while folding: it goes with what it works on
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return (source.name or "").rpartition("/")[0] if source is not None else ""
    scopes = ast.literal_eval(node.metadata_props[_SCOPES])
    path = scopes[-2] if len(scopes) > 1 else ""
    return path.removeprefix(_ROOT) if path.startswith(_ROOT) else ""


def _drop_trace_metadata(thing: ir.Node | ir.Value) -> None:
    """Forget stack traces and the like; they name files of the machine that traced."""
    for key in list(thing.metadata_props):
        if key != WINDOW_METADATA:
            del thing.metadata_props[key]
