"""The trained checkpoint's graph, what transformers says of some text, and what a change costs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from engines.calibration import observe
from engines.quality import Quality, QualityTally
from exporter.calibration_text import default_text
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled
from serving.contract import LOGITS

LENGTH, CALIBRATION, HELD_OUT = 192, 6, 8


@dataclass(frozen=True)
class Trained:
    """Windows are int64 [windows, length]; ``logits`` are transformers' of the held-out ones."""

    graph: ir.Model
    calibration: np.ndarray
    held_out: np.ndarray
    logits: list[np.ndarray]

    def quality(self, model: ir.Model, workspace: Path) -> Quality:
        """The graph, lowered for ONNX Runtime, against transformers on the held-out windows."""
        tally = QualityTally()
        (logits,) = (value for value in model.graph.outputs if value.name == LOGITS)
        runs = observe(model, [logits], list(self.held_out), workspace)
        for window, reference, run in zip(self.held_out, self.logits, runs, strict=True):
            tally.add(reference[:-1], run[LOGITS][0, :-1], window[1:])
        return tally.quality()


def load_trained(checkpoint: Path) -> Trained:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    ids = np.array(tokenizer(default_text()[0][:120_000])["input_ids"], np.int64)
    blocks = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    calibration, held_out = blocks[0::2][:CALIBRATION], blocks[1::2][:HELD_OUT]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [model(torch.from_numpy(window)[None]).logits[0].numpy() for window in held_out]
    graph = trace_unrolled(model, cache_layers(model))
    return Trained(graph, calibration, held_out, logits)
