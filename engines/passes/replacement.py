"""Putting a new value in an old one's place."""

import onnx_ir as ir


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` be used wherever ``old`` is, with its name, shape and type."""
    new.shape, new.type = old.shape, old.type
    new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
