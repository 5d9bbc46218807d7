"""Weight accounting and the windows that are read off a graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.structure import GraphError, account_weights, attention_windows, check_graph
from tests.checkpoints import WINDOW
from tests.exporter.damage import forget_window, large_constant, operators

Traced = Callable[[], ir.Model]


@pytest.fixture(scope="module")
def state(checkpoint: Callable[[str], Path]) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("mistral"))
    return {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}


def test_every_weight_is_used(traced: Traced, state: dict[str, object]) -> None:
    account = account_weights(traced(), state)
    weights = {name for name, tensor in state.items() if isinstance(tensor, torch.nn.Parameter)}
    assert weights <= set(account.used)
    assert not weights & set(account.unused)


def test_a_weight_that_is_not_used_is_named(traced: Traced, state: dict[str, object]) -> None:
    graph = traced()
    gate = next(node for node in operators(graph, "MatMul") if "gate_proj" in (node.name or ""))
    gate.replace_input_with(1, gate.inputs[1].producer().inputs[0])
    name = "model.layers.0.mlp.gate_proj.weight"
    value = graph.graph.initializers.pop(name)
    value.name = "small"
    assert account_weights(graph, state).unused[0] == name


def test_tied_weights_count_as_one(traced: Traced, state: dict[str, object]) -> None:
    graph = traced()
    tied = {**state, "tied.weight": state["lm_head.weight"]}
    assert "tied.weight" in account_weights(graph, tied).used


def test_a_large_constant_is_refused(traced: Traced, state: dict[str, object]) -> None:
    graph = traced()
    large_constant(graph)
    with pytest.raises(GraphError, match="no weight"):
        account_weights(graph, state)


def test_windows_are_those_of_the_layers(traced: Traced) -> None:
    graph = traced()
    assert attention_windows(graph, 2) == [WINDOW, WINDOW]
    forget_window(graph)
    assert attention_windows(graph, 2) == [None, WINDOW]


def test_inputs_and_outputs_are_those_of_the_contract(traced: Traced) -> None:
    check_graph(traced(), 2)
    graph = traced()
    graph.graph.inputs[0].name = "tokens"
    with pytest.raises(GraphError, match="its inputs"):
        check_graph(graph, 2)
    graph = traced()
    graph.graph.outputs.pop()
    with pytest.raises(GraphError, match="its outputs"):
        check_graph(graph, 2)


def test_layers_that_share_a_cache_may_have_more_attentions(traced: Traced) -> None:
    graph = traced()
    attention = operators(graph, "Attention")[-1]
    second = ir.node("Attention", attention.inputs, name="second")
    graph.graph.insert_before(attention, [second])
    with pytest.raises(GraphError, match="3 Attention nodes for 2 layers"):
        check_graph(graph, 2)
    check_graph(graph, 2, shared=True)


def test_numbers_stay_those_of_the_checkpoint(traced: Traced, state: dict[str, object]) -> None:
    for name, value in traced().graph.initializers.items():
        if isinstance(weight := state.get(name), torch.nn.Parameter):
            assert value.const_value is not None
            np.testing.assert_array_equal(value.const_value.numpy(), weight.detach().numpy())
