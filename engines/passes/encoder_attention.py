"""Attention of encoders on rows as products give them, [batch, sequence, heads * size].

ONNX's Attention takes them so too; ONNX Runtime's kernel turns heads and tokens round itself then.
"""

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.insertion import Inserter, take_place
from engines.passes.matching import input_of, integers, is_last_axis, only_reader, producer
from engines.passes.own_operators import ENCODER_DOMAIN, define

_BODY = """
    length = Shape <start = 1, end = 2> (queries)
    one = Constant <value_ints = [1]> ()
    shape = Concat <axis = 0> (one, one, length, one)
    seen = Expand (mask, shape)
    y = Attention <q_num_heads: int = @heads, kv_num_heads: int = @kv_heads, scale: float = @scale>
        (queries, keys, values, seen)
"""
_ATTRIBUTES = "<heads, kv_heads, scale>"
_FUNCTIONS = {
    "EncoderAttention": ("(queries, keys, values, mask) => (y)", _BODY),
    "PackedEncoderAttention": (
        "(rows, mask) => (y)",
        "queries, keys, values = Split <axis = -1, num_outputs = 3> (rows)" + _BODY,
    ),
}
_SWAPPED = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Rows:
    """A value [batch, sequence, heads * size] that is seen as [batch, heads, sequence, size]."""

    value: ir.Value
    heads: int


def fuse_encoder_attention(model: ir.Model) -> None:
    """Replace Attention, and the turning of its inputs and output, in place, where all is float32.

    Masks are boolean and the same for all heads.
    """
    used = {_fuse(model.graph, node) for node in list(model.graph) if node.op_type == "Attention"}
    for operator in sorted(name for name in used if name is not None):
        parameters, body = _FUNCTIONS[operator]
        define(model, ENCODER_DOMAIN, f"{operator} {_ATTRIBUTES} {parameters}", body)
    common.RemoveUnusedNodesPass()(model)


def _fuse(graph: ir.Graph, node: ir.Node) -> str | None:
    """Replace one node, and name the operator that took its place."""
    rows = [_rows(value) for value in node.inputs[:3]]
    mask = _mask(node)
    last = _turned_back(node)
    queries, keys, values = rows if len(rows) == 3 else (None, None, None)
    if queries is None or keys is None or values is None or mask is None or last is None:
        return None
    if keys.heads != values.heads or queries.heads % keys.heads or not _is_plain(node):
        return None
    inputs: list[ir.Value] = [queries.value, keys.value, values.value, mask]
    operator = "EncoderAttention"
    split = queries.value.producer()
    if split is not None and _is_split_of(split, inputs[:3]) and split.inputs[0] is not None:
        operator, inputs = "PackedEncoderAttention", [split.inputs[0], mask]
    insert = Inserter(graph, last, node.name or operator)
    scale = node.attributes.get_float("scale")
    assert scale is not None
    attributes = {"heads": queries.heads, "kv_heads": keys.heads, "scale": scale}
    take_place(graph, last, insert.value(operator, inputs, domain=ENCODER_DOMAIN, **attributes))
    return operator


def _is_plain(node: ir.Node) -> bool:
    """Whether nothing but a scale and a mask is asked for."""
    extra = {name for name in node.attributes if name != "scale"}
    return "scale" in node.attributes and not extra and len(node.outputs) == 1


def _rows(value: ir.Value | None) -> _Rows | None:
    """The rows behind Transpose(Reshape(rows, [0, 0, heads, size]))."""
    turned = producer(value, "Transpose")
    if turned is None or list(turned.attributes.get_ints("perm", [])) != _SWAPPED:
        return None
    reshape = producer(turned.inputs[0], "Reshape")
    source = reshape.inputs[0] if reshape is not None else None
    if reshape is None or source is None or source.dtype != ir.DataType.FLOAT:
        return None
    shape = integers(reshape.inputs[1])
    if shape is None or len(shape) != 4 or shape[2] < 1 or source.shape is None:
        return None
    is_rows = len(source.shape) == 3 and source.shape[2] == shape[2] * shape[3]
    return _Rows(source, shape[2]) if is_rows and shape[:2] == [0, 0] else None


def _turned_back(node: ir.Node) -> ir.Node | None:
    """The Reshape behind the Transpose that puts tokens in front of heads again."""
    turned = only_reader(node.outputs[0], "Transpose")
    if turned is None or list(turned.attributes.get_ints("perm", [])) != _SWAPPED:
        return None
    reshape = only_reader(turned.outputs[0], "Reshape")
    shape = reshape.outputs[0].shape if reshape is not None else None
    return reshape if shape is not None and len(shape) == 3 else None


def _mask(node: ir.Node) -> ir.Value | None:
    """A boolean mask [batch, 1, 1 or queries, keys], before it is widened for all queries."""
    mask = node.inputs[3] if len(node.inputs) == 4 else None
    if mask is None or mask.dtype != ir.DataType.BOOL:
        return None
    narrow = input_of(mask, "Expand")
    mask = narrow if narrow is not None else mask
    shape = mask.shape
    return mask if shape is not None and len(shape) == 4 and shape[1] == 1 else None


def _is_split_of(split: ir.Node, parts: list[ir.Value]) -> bool:
    """Whether a Split gives just these parts, alike, of the last axis."""
    widths = {value.shape[-1] for value in parts if value.shape is not None}
    return (
        split.op_type == "Split"
        and is_last_axis(split)
        and list(split.outputs) == parts
        and len(widths) == 1
    )
