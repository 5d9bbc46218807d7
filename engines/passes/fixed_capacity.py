"""Fix the KV buffers' capacity, for engines that want it static, and name the free axes."""

import onnx_ir as ir

from engines.passes.sizes import static_size
from serving.contract import INPUT_IDS, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS, is_hidden

BATCH, SEQUENCE, POSITIONS = "batch", "sequence", "positions"


def fix_capacity(model: ir.Model, max_length: int) -> None:
    """Give every past and present ``max_length`` positions, in place.

    Axes that are always of one size get one name (``batch``, ``sequence``, ``positions``), which
    tells an engine that they are equal.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.name in (INPUT_IDS, LOGITS_POSITIONS):
            second = SEQUENCE if value.name == INPUT_IDS else POSITIONS
            value.shape = ir.Shape([BATCH, second])
        elif value.name == PAST_LENGTHS:
            value.shape = ir.Shape([BATCH])
        elif value.name == LOGITS:
            value.shape = ir.Shape([BATCH, POSITIONS, static_size(value, 2)])
        elif is_hidden(value.name):
            sizes = tuple(value.shape)[2:] if value.shape is not None else ()
            value.shape = ir.Shape([BATCH, SEQUENCE, *sizes])
        else:
            kv_heads, head_dim = static_size(value, 1), static_size(value, 3)
            value.shape = ir.Shape([BATCH, kv_heads, max_length, head_dim])
