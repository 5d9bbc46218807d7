"""Compute the lengths that attention needs on the device, so that a decode step can be captured.

A CUDA graph may hold no copy between host and device. As lowered for any device, ``seqlens_k`` and
``query_seqlens`` of ``GroupQueryAttention`` follow from the shape of the tokens, which ONNX Runtime
knows on the host, and ``total_sequence_length`` from the past lengths, which are on the device.
Here the first two follow from data, and the last is the capacity, a shape: with ``query_seqlens``
the operator takes it as an upper bound only, so that it may stay the same from step to step.
"""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.initializers import add_initializer
from engines.passes.insertion import Inserter
from serving.contract import INPUT_IDS, PAST_LENGTHS

_LAST_INDICES, _TOTAL, _NEW = 5, 6, 16  # inputs of GroupQueryAttention
_BUFFER = 3


def keep_lengths_on_device(model: ir.Model) -> None:
    """Replace the lengths that every GroupQueryAttention reads, in place."""
    graph = model.graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    if not attentions:
        return
    inputs = {value.name: value for value in graph.inputs}
    insert = Inserter(graph, next(iter(graph)), "device_lengths")
    new = _count_columns(insert, inputs[INPUT_IDS])
    past = insert.value("Cast", [inputs[PAST_LENGTHS]], to=ir.DataType.INT32)
    one = add_initializer(graph, "device_lengths/one", np.asarray(1, dtype=np.int32))
    last = insert.value("Sub", [insert.value("Add", [past, new]), one])
    capacity = insert.value("Shape", [attentions[0].inputs[_BUFFER]], start=2, end=3)
    total = insert.value("Squeeze", [insert.value("Cast", [capacity], to=ir.DataType.INT32)])
    for node in attentions:
        for position, value in ((_LAST_INDICES, last), (_TOTAL, total), (_NEW, new)):
            node.replace_input_with(position, value)
    common.RemoveUnusedNodesPass()(model)


def _count_columns(insert: Inserter, tokens: ir.Value) -> ir.Value:
    """The number of columns of ``tokens`` [batch, sequence], int32 [batch], without its shape."""
    ones = insert.value("Cast", [insert.value("Equal", [tokens, tokens])], to=ir.DataType.INT32)
    return insert.value("ReduceSum", [ones, insert.integers([1])], keepdims=0)
