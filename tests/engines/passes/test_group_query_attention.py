"""Attention over a buffer and its two updates become one node that gives the same numbers."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.group_query_attention import lower_to_group_query_attention
from serving.contract import WINDOW_METADATA, past_name
from tests.engines.passes.graphs import CAPACITY, Arrays, assert_close, feeds, operators, run
from tests.engines.tensorrt.decoder_graph import (
    CAPPED,
    CAUSAL,
    KV_HEADS,
    WINDOW,
    Layer,
    decoder,
)

LAYERS = {"causal": CAUSAL, "window": WINDOW, "capped": CAPPED}
STEPS = {
    "prefill": ([0], 5),
    "chunk": ([6], 5),
    "decode": ([7], 1),
    "ragged decode": ([7, 0, 11], 1),
    "ragged chunks": ([6, 0, 11], 5),
}


def standard(*layers: Layer) -> ir.Model:
    """The graph as the exporter writes it, with the windows of its masks named."""
    model = decoder(*layers)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    for node, layer in zip(attentions, layers, strict=True):
        if layer.window is not None:
            node.metadata_props[WINDOW_METADATA] = str(layer.window)
    return model


def valid(outputs: Arrays, inputs: Arrays, sequence: int) -> Arrays:
    """Outputs without what lies behind each row's last token, which nobody may rely on."""
    ends = inputs["past_lengths"] + sequence
    hidden = np.arange(CAPACITY)[None, None, :, None] >= ends[:, None, None, None]
    return {
        name: np.where(hidden, 0, array) if name.startswith("present") else array
        for name, array in outputs.items()
    }


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("past", "sequence"), STEPS.values(), ids=STEPS)
def test_numbers_stay(layer: Layer, past: list[int], sequence: int) -> None:
    before, after = standard(layer, CAUSAL), standard(layer, CAUSAL)
    lower_to_group_query_attention(after)
    inputs = feeds(before, past=past, sequence=sequence)
    expected, got = (valid(run(m, inputs), inputs, sequence) for m in (before, after))
    assert_close(got, expected)


def test_nodes_before_and_after() -> None:
    model = standard(CAUSAL, WINDOW)
    before = operators(model)
    assert (before["Attention"], before["TensorScatter"]) == (2, 4)
    lower_to_group_query_attention(model)
    after = operators(model)
    assert (after["Attention"], after["TensorScatter"], after["GroupQueryAttention"]) == (0, 0, 2)
    windows = [
        node.attributes.get_int("local_window_size")
        for node in model.graph
        if node.op_type == "GroupQueryAttention"
    ]
    assert windows == [-1, 3]
    assert [value.name for value in model.graph.outputs] == [
        value.name for value in standard(CAUSAL, WINDOW).graph.outputs
    ]


def attention(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "Attention")


def with_unnamed_mask() -> ir.Model:
    return decoder(WINDOW)


def with_shared_cache() -> ir.Model:
    model = standard(CAUSAL, CAUSAL)
    first, second = (node for node in model.graph if node.op_type == "Attention")
    for position in (1, 2):
        second.replace_input_with(position, first.inputs[position])
    return model


def written_elsewhere() -> ir.Model:
    """Updates that don't start at past_lengths, which the fused operator would do."""
    model = standard(CAUSAL)
    update = next(node for node in model.graph if node.op_type == "TensorScatter")
    zeros = ir.node("Sub", [update.inputs[2], update.inputs[2]], name="zeros")
    zeros.outputs[0].name = "zeros"
    model.graph.insert_before(update, [zeros])
    update.replace_input_with(2, zeros.outputs[0])
    return model


@pytest.mark.parametrize("make", [with_unnamed_mask, with_shared_cache, written_elsewhere])
def test_what_it_cannot_stand_for_is_left_alone(make: Callable[[], ir.Model]) -> None:
    before, after = make(), make()
    lower_to_group_query_attention(after)
    assert operators(after)["GroupQueryAttention"] == operators(before)["Attention"] - (
        2 if make is with_shared_cache else 1
    )
    inputs = feeds(before, past=[7], sequence=1)
    assert_close(run(after, inputs, "logits"), run(before, inputs, "logits"))


def test_past_of_the_whole_capacity() -> None:
    before, after = standard(CAUSAL), standard(CAUSAL)
    lower_to_group_query_attention(after)
    inputs = feeds(before, past=[CAPACITY - 1], sequence=1)
    assert inputs[past_name(0, "key")].shape[1] == KV_HEADS
    assert_close(run(after, inputs), run(before, inputs))
