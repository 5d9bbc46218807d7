"""Removing attention heads.

Heads that share keys and values go together where the fraction makes out at least one such group.
Otherwise every group loses as many query heads. Either way all groups of a layer stay equally
large, so that the graph remains one of grouped queries.
"""

import onnx_ir as ir

from engines.pruning import axes
from engines.pruning.axes import Cut, UnmatchedError
from engines.pruning.importance import Importance, most_important
from engines.pruning.slicing import Slicing
from serving.errors import UserError

_HEADS = -3


def slice_heads(attention: ir.Node, fraction: float, importance: Importance) -> Slicing:
    """What goes with the least important heads of one Attention node.

    Raises UserError where the fraction removes none, UnmatchedError where heads can't be followed.
    """
    if axes.rank(attention.inputs[0]) != 4:
        raise UnmatchedError(f"{attention.name} has its heads and their elements in one axis")
    heads, groups = axes.size(attention.inputs[0], _HEADS), axes.size(attention.inputs[1], _HEADS)
    per_group = heads // groups
    members = [range(group * per_group, (group + 1) * per_group) for group in range(groups)]
    removed_groups, removed_each = _floor(fraction * groups), _floor(fraction * per_group)
    if removed_groups:
        scores = [_score(attention, tuple(group), importance) for group in members]
        chosen = most_important(scores, groups - removed_groups)
        kept = tuple(head for group in chosen for head in members[group])
    elif removed_each:
        kept = tuple(
            group[index]
            for group in members
            for index in most_important(
                [_score(attention, (head,), importance) for head in group],
                per_group - removed_each,
            )
        )
    else:
        raise UserError(
            f"--prune-heads {fraction:g} removes none of {heads} heads in {groups} groups: give at "
            f"least {_at_least(1 / max(groups, per_group)):g}."
        )
    return Slicing(attention.outputs[0], Cut(_HEADS, kept))


def _score(attention: ir.Node, heads: tuple[int, ...], importance: Importance) -> float:
    slicing = Slicing(attention.outputs[0], Cut(_HEADS, heads))
    if slicing.attentions != [attention]:
        raise UnmatchedError(f"{attention.name} shares keys and values with another layer")
    return importance.of_unit(slicing.reads())


def _floor(number: float) -> int:
    return int(number + 1e-9)  # 0.1 * 30 is less than 3


def _at_least(fraction: float) -> float:
    """The fraction rounded up to what people type."""
    return -(-fraction * 1000 // 1) / 1000
