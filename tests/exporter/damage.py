"""Ways to make a traced graph wrong, as a bug in the exporter or in a pass would."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from serving.contract import WINDOW_METADATA

Damage = Callable[[ir.Model], None]
ATTENTION = "model.layers.0.self_attn/Attention"


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def operators(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def change_weight(name: str, *, by: float) -> Damage:
    """Change the first number of each row of a weight."""

    def damage(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[..., 0] += by
        value.const_value = ir.tensor(array, name=name)

    return damage


def change_scale(model: ir.Model) -> None:
    attention = node(model, ATTENTION)
    scale = attention.attributes.get_float("scale")
    attention.attributes["scale"] = ir.AttrFloat32("scale", 1.01 * scale)


def change_window(model: ir.Model) -> None:
    metadata = node(model, ATTENTION).metadata_props
    metadata[WINDOW_METADATA] = str(int(metadata[WINDOW_METADATA]) + 1)


def forget_window(model: ir.Model) -> None:
    """Make the attention plainly causal."""
    attention = node(model, ATTENTION)
    attention.replace_input_with(3, None)
    attention.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    del attention.metadata_props[WINDOW_METADATA]


def turn_rotation(model: ir.Model) -> None:
    """Rotate the queries of the first layer the other way."""
    rotation = operators(model, "RotaryEmbedding")[0]
    negation = ir.node("Neg", [rotation.inputs[2]], name="turned/Neg")
    negation.outputs[0].type, negation.outputs[0].shape = (
        rotation.inputs[2].type,
        rotation.inputs[2].shape,
    )
    model.graph.insert_before(rotation, [negation])
    rotation.replace_input_with(2, negation.outputs[0])


def shift_positions(model: ir.Model) -> None:
    """Start positions at 1, in the cosines alone."""
    cosine = operators(model, "Cos")[0]
    sine = operators(model, "Sin")[0]
    sine.outputs[0].replace_all_uses_with(cosine.outputs[0])


def forget_past(model: ir.Model) -> None:
    """Write new tokens to the front of the second layer's value buffer: prefill stays right."""
    update = next(n for n in reversed(model.graph) if n.op_type == "TensorScatter")
    zeros = ir.node("Sub", [update.inputs[2], update.inputs[2]], name="zeros")
    zeros.outputs[0].name = "zeros"
    model.graph.insert_before(update, [zeros])
    update.replace_input_with(2, zeros.outputs[0])


def swap_presents(model: ir.Model) -> None:
    """Give each layer the other layer's cached keys."""
    first, second = (
        update for update in operators(model, "TensorScatter") if ".key" in update.inputs[0].name
    )
    past = first.inputs[0]
    first.replace_input_with(0, second.inputs[0])
    second.replace_input_with(0, past)


def skip_cache(model: ir.Model) -> None:
    """Let attention read new keys and not the cache, which is handed through."""
    update = operators(model, "TensorScatter")[0]
    present, name = update.outputs[0], update.outputs[0].name
    untouched = ir.node("Identity", [update.inputs[0]], name="untouched")
    model.graph.insert_before(update, [untouched])
    for use in list(present.uses()):
        use.node.replace_input_with(use.idx, update.inputs[1])
    present.replace_all_uses_with(untouched.outputs[0], replace_graph_outputs=True)
    present.name, untouched.outputs[0].name = None, name
    untouched.outputs[0].shape, untouched.outputs[0].type = present.shape, present.type
    model.graph.remove(update, safe=True)


def skip_attention(model: ir.Model) -> None:
    attention = node(model, ATTENTION)
    attention.outputs[0].replace_all_uses_with(attention.inputs[0])
    model.graph.remove(attention, safe=True)


def foreign_operator(model: ir.Model) -> None:
    operators(model, "Sigmoid")[0].domain = "com.example"


def ignore_lengths(model: ir.Model) -> None:
    """Compute everything as if the cache were empty."""
    past = next(value for value in model.graph.inputs if value.name == "past_lengths")
    zeros = ir.Value(
        name="no_past",
        type=past.type,
        shape=ir.Shape([1]),
        const_value=ir.tensor(np.zeros(1, np.int64), name="no_past"),
    )
    model.graph.register_initializer(zeros)
    past.replace_all_uses_with(zeros)


def large_constant(model: ir.Model) -> None:
    """Store what was computed from a weight, under a name that isn't the checkpoint's."""
    value = model.graph.initializers.pop("lm_head.weight")
    value.name = "lm_head.folded"
    value.const_value = ir.tensor(2 * value.const_value.numpy(), name=value.name)
    model.graph.register_initializer(value)
