"""Give the last hidden states as a graph output, from which serving makes embeddings.

They are what the language model head's positions are gathered from, so nothing more is computed.
TensorRT's graphs don't get this output: its engines write every output at every step.
"""

import onnx_ir as ir

from serving.contract import EMBEDDINGS, LOGITS_POSITIONS

_ON_THE_WAY = ("Unsqueeze", "Expand")  # from the positions to the indices of the gathering


def expose_embeddings(model: ir.Model) -> None:
    """Make the last hidden states [batch, sequence, hidden] an output, in place.

    A graph that gathers nothing, such as a stage that isn't the last, stays as it is.
    """
    states = last_hidden_states(model)
    if states is not None:
        states.name = EMBEDDINGS
        model.graph.outputs.append(states)


def last_hidden_states(model: ir.Model) -> ir.Value | None:
    """What the language model head's positions are gathered from, or None if nothing is."""
    values = [value for value in model.graph.inputs if value.name == LOGITS_POSITIONS]
    while values:
        for use in values.pop().uses():
            if use.node.op_type == "GatherElements" and use.idx == 1:
                states = use.node.inputs[0]
                return states if states is not None and states.producer() is not None else None
            if use.node.op_type in _ON_THE_WAY and use.idx == 0:
                values += use.node.outputs
    return None
