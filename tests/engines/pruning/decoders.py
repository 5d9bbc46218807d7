"""Traced decoders with other weights put in, and running them beside transformers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engines.passes.bfloat16_arithmetic import widen_bfloat16_arithmetic
from engines.standard import simplify
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled

Parameters = Mapping[str, torch.Tensor]
SEQUENCE, FIRST = 12, 7  # tokens of a row, and how many of them the first step gets


def trace(checkpoint: Path, file: Path) -> None:
    """Write a checkpoint's standard graph to ``file``."""
    model = load(checkpoint)
    graph = trace_unrolled(model, cache_layers(model))
    simplify(graph)
    ir.save(graph, file)


def load(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def put(model: ir.Model, parameters: Parameters) -> None:
    """Give a graph's initialisers the values of these parameters, by name."""
    for name, parameter in parameters.items():
        if name in model.graph.initializers:
            array = parameter.detach().numpy().copy()
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def tokens(vocabulary: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, vocabulary, (2, SEQUENCE))


@torch.no_grad()
def reference(model: PreTrainedModel) -> np.ndarray:
    return model(torch.tensor(tokens(model.config.vocab_size))).logits.numpy()


def logits(model: ir.Model, vocabulary: int) -> np.ndarray:
    """Logits of a graph at all positions, from a prefill and a second step over its buffers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    model = model.clone()
    widen_bfloat16_arithmetic(model)  # ALiBi is computed in bfloat16
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    ids = tokens(vocabulary)
    buffers = {
        value.name: np.zeros((len(ids), value.shape[1], SEQUENCE, value.shape[3]), np.float32)
        for value in session.get_inputs()[3:]
    }
    parts, past = [], 0
    for part in (ids[:, :FIRST], ids[:, FIRST:]):
        positions = np.tile(np.arange(part.shape[1]), (len(ids), 1))
        feeds = {
            "input_ids": part,
            "past_lengths": np.full(len(ids), past),
            "logits_positions": positions,
        }
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, feeds | buffers), strict=True))
        parts.append(results["logits"])
        buffers = {name: results[name.replace("past_key_values", "present")] for name in buffers}
        past += part.shape[1]
    return np.concatenate(parts, axis=1)
