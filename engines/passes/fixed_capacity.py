"""Fix the KV buffers' capacity, for engines that want it static, and name the free axes."""

import onnx_ir as ir

from engines.passes.sizes import static_size
from serving.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    is_cross,
    is_hidden,
)

BATCH, SEQUENCE, POSITIONS = "batch", "sequence", "positions"


def fix_capacity(model: ir.Model, max_length: int, max_source: int | None = None) -> None:
    """Give every past and present ``max_length`` positions, in place.

    What a decoder reads of a source has ``max_source`` positions.

    Axes that are always of one size get one name (``batch``, ``sequence``, ``positions``), which
    tells an engine that they are equal.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.name in (INPUT_IDS, LOGITS_POSITIONS):
            second = SEQUENCE if value.name == INPUT_IDS else POSITIONS
            value.shape = ir.Shape([BATCH, second])
        elif value.name in (PAST_LENGTHS, SOURCE_LENGTHS):
            value.shape = ir.Shape([BATCH])
        elif value.name == LOGITS:
            value.shape = ir.Shape([BATCH, POSITIONS, static_size(value, 2)])
        elif is_hidden(value.name):
            sizes = tuple(value.shape)[2:] if value.shape is not None else ()
            value.shape = ir.Shape([BATCH, SEQUENCE, *sizes])
        else:
            kv_heads, head_dim = static_size(value, 1), static_size(value, 3)
            positions = max_source if is_cross(value.name) else max_length
            value.shape = ir.Shape([BATCH, kv_heads, positions, head_dim])


def name_axes(encoder: ir.Model) -> None:
    """Name the free axes of an encoder-decoder's encoder graph, in place."""
    for value in (*encoder.graph.inputs, *encoder.graph.outputs):
        if value.name in (INPUT_IDS, ATTENTION_MASK):
            value.shape = ir.Shape([BATCH, SEQUENCE])
        else:
            kv_heads, head_dim = static_size(value, 1), static_size(value, 3)
            value.shape = ir.Shape([BATCH, kv_heads, SEQUENCE, head_dim])
