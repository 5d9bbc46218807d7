"""The standard passes on every architecture: fewer nodes, the same numbers, nothing foreign."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engines.linears import find_linears
from engines.standard import optimize
from serving.contract import INPUT_IDS, LOGITS_POSITIONS, PAST_LENGTHS
from tests.conftest import Graphs
from tests.engines.passes.graphs import Arrays, operators, run

CAPACITY = 20
# Prefill, a chunk behind it, and one decoded token.
STEPS = ((0, 9), (9, 12), (12, 13))
# What becomes one node in architectures that differ; test_architectures.py has the others.
FUSED = {
    "gpt2": {"LayerNormalization", "Gelu"},  # Gemm, merged already, tied
    "qwen2": {"RMSNormalization", "RotaryEmbedding", "Split"},  # biases
    "gemma": {"RMSNormalization", "RotaryEmbedding", "Gelu", "Split"},  # scales of 1 + weight
    "cohere": {"LayerNormalization", "RotaryEmbedding", "Split"},  # interleaved, primitive norms
    "phi": {"LayerNormalization", "RotaryEmbedding", "Gelu", "Split"},  # the first channels
    "gpt_oss": {"RMSNormalization", "RotaryEmbedding", "Split"},  # experts, turned half by half
}


def logits(model: ir.Model) -> np.ndarray:
    """Two rows of tokens, written to the cache in several steps."""
    tokens = np.random.default_rng(0).integers(3, 500, (2, STEPS[-1][1]))
    past: Arrays = {
        value.name: np.zeros((2, value.shape[1], CAPACITY, value.shape[3]), np.float32)
        for value in model.graph.inputs[3:]
    }
    parts = []
    for start, end in STEPS:
        feeds = {
            INPUT_IDS: tokens[:, start:end],
            PAST_LENGTHS: np.array([start, start]),
            LOGITS_POSITIONS: np.tile(np.arange(end - start), (2, 1)),
        }
        outputs = run(model, {**feeds, **past})
        parts.append(outputs.pop("logits"))
        past = dict(zip(past, outputs.values(), strict=True))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("architecture", FUSED)
def test_same_numbers_with_fewer_nodes(architecture: str, traced_graph: Graphs) -> None:
    graph = traced_graph(architecture)
    before, expected, linears = operators(graph), logits(graph), elements_of_linears(graph)
    interface = names(graph)
    optimize(graph)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert np.abs(logits(graph) - expected).max() < 2e-5
    after = operators(graph)
    assert after.total() < 0.75 * before.total()
    assert after.keys() >= FUSED[architecture]
    assert after["Gemm"] == after["Pow"] == after["Neg"] == after["Erf"] == 0
    assert (after["Attention"], after["TensorScatter"]) == (2, 4)
    assert names(graph) == interface
    assert {node.domain for node in graph.graph} == {""}
    assert max(Counter(node.name for node in graph.graph).values()) == 1
    assert elements_of_linears(graph) == linears
    values = [value for node in graph.graph for value in node.outputs]
    assert all(value.type is not None and value.shape is not None for value in values)


def names(model: ir.Model) -> list[str | None]:
    return [value.name for value in (*model.graph.inputs, *model.graph.outputs)]


def elements_of_linears(model: ir.Model) -> int:
    """Weights of all linear layers, those that are Gemm still among them."""
    weights = {linear.weight for linear in find_linears(model)}
    weights |= {node.inputs[1] for node in model.graph if node.op_type == "Gemm"}
    return sum(np.prod(weight.shape.numpy()) for weight in weights)
