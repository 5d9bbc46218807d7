"""Tiny traced decoders, and their logits in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoModelForCausalLM

from engines.standard import optimize
from exporter.tracing import cache_layers, trace
from serving.contract import INPUT_IDS, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS
from tests.engines.passes.graphs import run

TOKENS = np.random.default_rng(4).integers(3, 500, (1, 21))


def standard_graph(checkpoint: Path) -> ir.Model:
    """The standard graph of a checkpoint, as it comes to quantisation."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    graph = trace(model, cache_layers(model))
    optimize(graph)
    return graph


def logits(model: ir.Model, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Logits [1, n, vocab] of a standard graph at every position."""
    count = tokens.shape[1]
    feeds = {
        INPUT_IDS: tokens,
        PAST_LENGTHS: np.zeros(1, np.int64),
        LOGITS_POSITIONS: np.arange(count)[None],
    }
    for value in model.graph.inputs[3:]:
        heads, dim = value.shape[1], value.shape[3]
        feeds[value.name] = np.zeros((1, heads, count, dim), value.dtype.numpy())
    return run(model, feeds, LOGITS)[LOGITS]
