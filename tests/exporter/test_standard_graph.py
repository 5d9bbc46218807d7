"""The graph is standard ONNX: its checker accepts it, its reference evaluator gets the logits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import AutoModelForCausalLM

from exporter.tracing import cache_layers
from serving.contract import INPUT_IDS, LOGITS_POSITIONS, PARTS, PAST_LENGTHS, past_name
from tests.conftest import Graphs

CAPACITY, PROMPT = 20, 13


@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2", "bloom", "gpt_oss"])
def test_reference_evaluator_agrees(
    architecture: str, checkpoint: Callable[[str], Path], traced_graph: Graphs
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint(architecture), dtype=torch.float32)
    layers = cache_layers(model.eval())
    graph = ir.to_proto(traced_graph(architecture))
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 24)]

    evaluator = ReferenceEvaluator(graph)
    tokens = np.random.default_rng(0).integers(3, 500, (2, PROMPT))
    past = {
        past_name(index, part): np.zeros((2, layer.kv_heads, CAPACITY, dim), np.float32)
        for index, layer in enumerate(layers)
        if layer is not None
        for part, dim in zip(PARTS, (layer.key_dim, layer.value_dim), strict=True)
    }
    logits = []
    # Prefill, a chunk behind it, and one decoded token.
    for start, end in ((0, 8), (8, 12), (12, 13)):
        positions = np.tile(np.arange(end - start), (2, 1))
        feeds = {
            INPUT_IDS: tokens[:, start:end],
            PAST_LENGTHS: np.array([start, start]),
            LOGITS_POSITIONS: positions,
        }
        step, *present = evaluator.run(None, {**feeds, **past})
        past = dict(zip(past, present, strict=True))
        logits.append(step)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(np.concatenate(logits, axis=1) - expected).max() < 1e-4
