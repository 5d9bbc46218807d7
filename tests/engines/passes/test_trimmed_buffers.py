"""Attention that stays standard reads only the valid part of its buffers."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.group_query_attention import lower_to_group_query_attention
from engines.passes.trimmed_buffers import trim_buffers
from tests.engines.passes.graphs import assert_close, feeds, operators, run
from tests.engines.tensorrt.decoder_graph import CAPPED_WINDOW, CAUSAL, WINDOW, decoder

MASKED = (WINDOW, CAPPED_WINDOW)


def trimmed() -> ir.Model:
    model = decoder(*MASKED)
    trim_buffers(model)
    return model


@pytest.mark.parametrize(("past", "sequence"), [([0], 5), ([6, 2], 4), ([7, 0, 11], 1)])
def test_numbers_stay(past: list[int], sequence: int) -> None:
    before, after = decoder(*MASKED), trimmed()
    inputs = feeds(before, past=past, sequence=sequence)
    assert_close(run(after, inputs), run(before, inputs))


def test_nodes_before_and_after() -> None:
    before, after = operators(decoder(*MASKED)), operators(trimmed())
    assert after["Slice"] - before["Slice"] == 4  # two buffers of two layers
    for op_type in ("Attention", "TensorScatter"):
        assert after[op_type] == before[op_type]


def test_attention_sees_as_many_positions_as_the_longest_row_has() -> None:
    model = trimmed()
    attention = next(node for node in model.graph if node.op_type == "Attention")
    key, mask = attention.inputs[1], attention.inputs[3]
    model.graph.outputs.extend([key, mask])
    inputs = feeds(model, past=[7, 2], sequence=3, capacity=64)
    got = run(model, inputs, key.name, mask.name)
    assert got[key.name].shape[2] == 10
    assert got[mask.name].shape[-1] == 10


def test_what_lies_behind_the_valid_part_does_not_matter() -> None:
    model = trimmed()
    inputs = feeds(model, past=[3], sequence=1)
    expected = run(model, inputs, "logits")
    for name, array in inputs.items():
        if name.startswith("past_key"):
            array[:, :, 4:] = np.nan
    assert_close(run(model, inputs, "logits"), expected)


def test_a_graph_without_standard_attention_is_left_alone() -> None:
    model = decoder(CAUSAL)
    lower_to_group_query_attention(model)
    before = operators(model)
    trim_buffers(model)
    assert operators(model) == before
