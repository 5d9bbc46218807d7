"""The two layouts of heads: [batch, heads, sequence, dim] and [batch, sequence, heads * dim].

The standard graph gives attention the first; ONNX Runtime's operators take the second, which is how
projections write it. Where the graph went from one to the other, its Transpose and Reshape are left
out instead of being undone by two more.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.sizes import static_size

_SWAP = [0, 2, 1, 3]


def tokens_first(insert: Inserter, value: ir.Value) -> ir.Value:
    """The numbers of ``value`` [batch, heads, sequence, dim] as [batch, sequence, heads * dim].

    Raises ValueError if its heads and dim aren't static.
    """
    heads, dim = static_size(value, 1), static_size(value, 3)
    node = value.producer()
    if node is not None and node.op_type == "RotaryEmbedding" and node.domain == "":
        return _rotated(insert, node, heads)
    split_heads = _heads_second_to_last(insert, value)
    split = split_heads.producer()
    flat = split.inputs[0] if split is not None else None
    if split is not None and flat is not None and _regroups_heads(split, flat, split_heads):
        return flat
    return insert.value("Reshape", [split_heads, insert.integers([0, 0, heads * dim])])


def _heads_second_to_last(insert: Inserter, value: ir.Value) -> ir.Value:
    """The numbers of ``value`` [batch, heads, sequence, dim] as [batch, sequence, heads, dim]."""
    node = value.producer()
    source = node.inputs[0] if node is not None else None
    if node is not None and source is not None:
        if _is_swap(node):
            return source
        if node.op_type == "RMSNormalization" and node.attributes.get_int("axis", -1) in (-1, 3):
            epsilon = node.attributes.get_float("epsilon", 1e-5)
            stash_type = node.attributes.get_int("stash_type", 1)
            operands = [_heads_second_to_last(insert, source), node.inputs[1]]
            return insert.value(
                "RMSNormalization", operands, axis=-1, epsilon=epsilon, stash_type=stash_type
            )
    return insert.value("Transpose", [value], perm=_SWAP)


def _rotated(insert: Inserter, rotary: ir.Node, heads: int) -> ir.Value:
    """The rotary embedding of tokens_first(its input): the operator takes either layout."""
    source, *tables = rotary.inputs
    assert source is not None
    return insert.value(
        "RotaryEmbedding",
        [tokens_first(insert, source), *tables],
        num_heads=heads,
        interleaved=rotary.attributes.get_int("interleaved", 0),
        rotary_embedding_dim=rotary.attributes.get_int("rotary_embedding_dim", 0),
    )


def replace_heads_first(insert: Inserter, old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` [batch, sequence, heads * dim] stand for ``old`` [batch, heads, sequence, dim].

    What only joins the heads of ``old`` again is replaced too; it stays behind without readers.
    """
    for swap in [use.node for use in old.uses() if _is_swap(use.node)]:
        split_heads = swap.outputs[0]
        for join in [use.node for use in split_heads.uses()]:
            if _regroups_heads(join, join.outputs[0], split_heads):
                join.outputs[0].replace_all_uses_with(new)
    shape = [0, 0, static_size(old, 1), static_size(old, 3)]
    rows = insert.value("Reshape", [new, insert.integers(shape)])
    old.replace_all_uses_with(insert.value("Transpose", [rows], perm=_SWAP))


def _is_swap(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == _SWAP


def _regroups_heads(node: ir.Node, flat: ir.Value, split_heads: ir.Value) -> bool:
    """Whether a Reshape goes between [a, b, heads * dim] and [a, b, heads, dim], either way."""
    if node.op_type != "Reshape" or flat.shape is None or split_heads.shape is None:
        return False
    if len(flat.shape) != 3 or len(split_heads.shape) != 4:
        return False
    return _copies_two_axes(node) or _same_known(flat.shape[:2], split_heads.shape[:2])


def _copies_two_axes(reshape: ir.Node) -> bool:
    target = reshape.inputs[1].const_value if reshape.inputs[1] is not None else None
    if target is None or reshape.attributes.get_int("allowzero", 0) == 1:
        return False
    return list(target.numpy()[:2]) == [0, 0]


Sizes = Sequence[int | ir.SymbolicDim]


def _same_known(first: Sizes, second: Sizes) -> bool:
    """Whether sizes are known to be equal: a nameless one equals nothing."""
    named = (size if isinstance(size, int) else size.value for size in first)
    return None not in named and tuple(first) == tuple(second)
