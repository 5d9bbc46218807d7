"""Float16 exports of encoder-decoders with activations that float16 can't hold."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from exporter.calibration_windows import token_windows
from exporter.encoder_decoder.building import optimize_pair
from exporter.encoder_decoder.export import trace_pair
from exporter.encoder_decoder.float16_range import keep_pair_in_range
from exporter.export import Request, plan_export
from serving.contract import ATTENTION_MASK, INPUT_IDS
from tests.encoder_decoders import make_encoder_decoder
from tests.exporter.test_float16_range import LARGE, SMALL, scale_weights

LENGTH = 32
PARTS = ("encoder", "decoder")


def large_channels(weights: dict[str, torch.Tensor]) -> None:
    """Let a channel of an MLP in either part reach far beyond 65504 and come back behind it."""
    for part in PARTS:
        weights[f"model.{part}.layers.0.fc1.weight"][0] *= LARGE
        weights[f"model.{part}.layers.0.fc1.bias"][0] = 60_000
        weights[f"model.{part}.layers.0.fc2.weight"][:, 0] *= SMALL


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_overflows_is_computed_in_float32(tmp_path: Path) -> None:
    overflowing = scale_weights(make_encoder_decoder("bart", tmp_path / "model"), large_channels)
    request = Request(model=str(overflowing), bundle=tmp_path / "bundle", dtype="float16")
    checkpoint, plan = plan_export(request)
    pair = trace_pair(checkpoint, plan)
    optimize_pair(pair)
    text = token_windows(checkpoint, LENGTH, None).calibration
    source = text[0][: LENGTH // 2]
    assert not all_finite(pair.encoder, source)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    islands = keep_pair_in_range(pair, "tiny", list(text), LENGTH, scratch)
    assert not list(scratch.iterdir())
    assert all(any(f"{part}.layers.0" in name for name in islands) for part in PARTS)
    assert all_finite(pair.encoder, source)


def all_finite(encoder: ir.Model, source: np.ndarray) -> bool:
    """Whether no value is infinite where each result is rounded to float16, as the graph says."""
    feeds = {INPUT_IDS: source[None], ATTENTION_MASK: np.ones_like(source)[None]}
    evaluator = ReferenceEvaluator(ir.to_proto(encoder))
    values = evaluator.run(None, feeds, intermediate=True)
    halves = [array for array in values.values() if np.asarray(array).dtype == np.float16]
    assert len(halves) > 20
    return all(np.isfinite(array).all() for array in halves)
