"""Removing channels of an MLP: rows of what makes them, columns of what reads them."""

import onnx_ir as ir

from engines.linears import Linear
from engines.pruning import axes
from engines.pruning.axes import Cut, UnmatchedError
from engines.pruning.importance import Importance, most_important
from engines.pruning.slicing import Slicing
from serving.errors import UserError

MULTIPLE = 32  # channels that stay, so that kernels and groups of quantised weights stay whole


def has_experts(model: ir.Model) -> bool:
    """Whether activations are multiplied with stacks of weights, [experts, in, out]."""
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1] is not None:
            value = node.inputs[1]
            producer = value.producer()
            while producer is not None and producer.op_type in ("Transpose", "Identity", "Cast"):
                value = producer.inputs[0] or value
                producer = value.producer()
            if value.is_initializer() and axes.rank(value) > 2:
                return True
    return False


def is_channel_reader(linear: Linear) -> bool:
    """Whether a linear layer reads channels that only linear layers make: an MLP's last layer."""
    count = axes.size(linear.source, -1)
    try:
        slicing = Slicing(linear.source, Cut(-1, tuple(range(count - 1))))
    except UnmatchedError:
        return False
    return bool(slicing.writers) and not slicing.attentions


def slice_channels(source: ir.Value, fraction: float, importance: Importance) -> Slicing:
    """What goes with the least important channels of ``source`` [..., channels].

    The count that stays is rounded up to a multiple of 32. Raises UserError where none is removed.
    """
    count = axes.size(source, -1)
    exact = count - int(fraction * count + 1e-9)
    kept = -(-exact // MULTIPLE) * MULTIPLE
    if kept >= count:
        raise UserError(
            f"--prune-channels {fraction:g} removes none of {count} channels: what stays is a "
            f"multiple of {MULTIPLE}."
        )
    readers = Slicing(source, Cut(-1, tuple(range(kept)))).readers
    scores = [
        importance.of_unit((reader, Cut(-1, (channel,))) for reader in readers)
        for channel in range(count)
    ]
    return Slicing(source, Cut(-1, most_important(scores, kept)))
