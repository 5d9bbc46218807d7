"""Keeping a float16 export within float16's range, by what calibration text shows.

ONNX Runtime computes float16 in float32 on the CPU and so hides what overflows on other hardware.
The graph is therefore watched in a float32 copy that has the same nodes and the same weights.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from engines.activation_ranges import activation_ranges, out_of_range
from engines.calibration import Window
from engines.passes.float32_islands import widen_to_float32
from engines.passes.lora_inputs import products_beside
from engines.passes.widened_floats import widen_floats
from serving.errors import UserError

WINDOWS = 2  # of the calibration text
_MASK = 3  # the input of Attention that is added to its scores


def keep_in_range(model: ir.Model, name: str, text: Sequence[Window], scratch: Path) -> list[str]:
    """Compute in float32 what leaves float16's range on the text, in place.

    ``model`` is an optimised float16 graph of the checkpoint ``name``; ``text`` are windows of
    tokens, int64 [n], maybe with a source, of which the first two are run. ``scratch`` is a
    directory for float32 weights meanwhile. Returns the names of the nodes that leave the range, in
    the graph's order; those that read their results are computed in float32 too. Raises UserError
    where attention, a KV buffer or the logits would have to be float32.
    """
    leaving = _leaving(model, text[:WINDOWS], scratch)
    for node in leaving:
        if _has_to_be_float16(node):
            raise UserError(
                f"{name} was not exported: {node.name} leaves the range of float16 and can't be "
                "computed in float32 alone; use float32, or --bf16 for a TensorRT target."
            )
    names = [node.name or "" for node in leaving]
    if names:
        # Nothing is seen of what adapters add, for the text is run without any.
        products = [node.name or "" for node in products_beside(model, leaving)]
        widen_to_float32(model, [*names, *products])
    return names


def range_markdown(islands: Sequence[str]) -> list[str]:
    """The lines of report.md, from the heading on."""
    lines = ["## Range of float16", ""]
    if not islands:
        return [*lines, "Nothing came near it on calibration text."]
    lines += [
        f"Nodes that leave it on calibration text: {len(islands)}. They are computed in float32, "
        "as are those that read their results.",
        "",
    ]
    return [*lines, *(f"- `{name}`" for name in islands)]


def _leaving(model: ir.Model, text: Sequence[Window], scratch: Path) -> list[ir.Node]:
    """The nodes with float16 results that go beyond the range on the text, in order."""
    wide = model.clone()
    widen_floats(wide, ir.DataType.FLOAT16)
    with TemporaryDirectory(dir=scratch) as workspace:
        names = out_of_range(activation_ranges(wide, text, Path(workspace)))
    return [
        node
        for node in model.graph
        if node.name in names
        and any(output.dtype == ir.DataType.FLOAT16 for output in node.outputs)
        and not _is_mask(node)
    ]


def _is_mask(node: ir.Node) -> bool:
    """Whether a node is for masks alone, where -65504 and -inf are meant to be what they are."""
    uses = [use for output in node.outputs for use in output.uses()]
    is_read = bool(uses) and not any(output.is_graph_output() for output in node.outputs)
    return is_read and all(
        use.idx == _MASK if use.node.op_type == "Attention" else _is_mask(use.node) for use in uses
    )


def _has_to_be_float16(node: ir.Node) -> bool:
    """Whether a node writes a buffer, is attention or its queries, or gives the logits."""
    if node.op_type in ("Attention", "TensorScatter"):
        return True
    uses = [use for output in node.outputs for use in output.uses()]
    is_query = any(use.node.op_type == "Attention" and use.idx == 0 for use in uses)
    return is_query or any(output.is_graph_output() for output in node.outputs)
