"""The quality gate on engines of the small trained model, of several precisions and damaged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM

from engines import onnxruntime as onnxruntime_target
from engines.linears import find_linears
from engines.quality import Quality, QualityLimits
from engines.quantization.qdq import quantize_initializer
from engines.quantization.weights import WeightScheme, round_to_nearest
from exporter import export as export_module
from exporter.building import graph_info
from exporter.calibration_windows import TokenWindows, token_windows
from exporter.checkpoint import Checkpoint
from exporter.export import Request, plan_export
from exporter.gate import Subject
from exporter.plan import Plan
from exporter.quality_gate import DECODED, measure_quality, refuse_breach
from exporter.quality_report import EngineQuality, QualityReport
from serving.errors import UserError
from tests.exports import once

Change = Callable[[ir.Model], None]
Measure = Callable[..., EngineQuality]

WINDOWS = 3


def unchanged(_: ir.Model) -> None:
    """Leave a graph as it is."""


def quantized(model: ir.Model, bits: int) -> None:
    """Round every linear layer's weight to integers."""
    scheme = WeightScheme(bits, 32 if bits == 4 else None)  # type: ignore[arg-type]
    for linear in {linear.name: linear for linear in find_linears(model)}.values():
        weight = round_to_nearest(linear.array(), scheme)
        quantize_initializer(model, linear.weight, weight, transposed=linear.transposed)


def scaled(model: ir.Model, name: str, by: float) -> None:
    """Multiply one initialiser."""
    value = model.graph.initializers[name]
    array = value.const_value.numpy() * by
    value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=name)


@pytest.fixture(scope="module")
def planned(trained_checkpoint: Path) -> tuple[Checkpoint, Plan]:
    return plan_export(Request(model=str(trained_checkpoint), bundle=Path("nowhere")))


@pytest.fixture(scope="module")
def windows(planned: tuple[Checkpoint, Plan]) -> TokenWindows:
    """Windows of text that the model wasn't trained on."""
    checkpoint, plan = planned
    every = token_windows(checkpoint, plan.max_length, None)
    return replace(every, held_out=every.held_out[::5][:WINDOWS])


@pytest.fixture(scope="module")
def measure(
    planned: tuple[Checkpoint, Plan],
    windows: TokenWindows,
    tmp_path_factory: pytest.TempPathFactory,
) -> Measure:
    """Return a function from what is done to the traced graph to what the gate measures."""
    checkpoint, plan = planned

    def trace(path: Path) -> None:
        ir.save(export_module._trace(checkpoint, plan).model, path)

    traced = once(tmp_path_factory, "traced/trained.onnx", trace)

    def measure(change: Change, held_out: np.ndarray = windows.held_out) -> EngineQuality:
        model = ir.load(traced)
        change(model)
        graph = graph_info(model, plan)
        directory = tmp_path_factory.mktemp("engine")
        onnxruntime_target.lower(model)
        onnxruntime_target.write(model, directory)
        (measured,) = measure_quality(
            checkpoint,
            [Subject(directory, graph, ("onnxruntime",))],
            held_out,
            parameters=plan.parameters,
            scratch=directory,
        )
        assert not list(directory.glob("reference-logits-*"))
        return measured

    return measure


def test_the_same_weights_lose_nothing(
    measure: Measure, planned: tuple[Checkpoint, Plan], windows: TokenWindows
) -> None:
    got = measure(unchanged)
    assert abs(got.overall.mean_kl) < 1e-6
    assert got.overall.top1_agreement == 1
    assert abs(got.overall.perplexity_increase) < 1e-5
    assert got.overall.tokens == WINDOWS * 255
    assert got.decode.tokens == WINDOWS * DECODED
    assert got.bits_per_weight == pytest.approx(32, rel=0.01)
    assert got.prefill_tokens_per_second > 0
    assert got.decode_tokens_per_second > 0
    refuse_breach(planned[0], [got], QualityLimits(1e-5, 1e-4))

    model = AutoModelForCausalLM.from_pretrained(planned[0].directory)
    ids = torch.from_numpy(windows.held_out)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert got.overall.reference_perplexity == pytest.approx(loss.exp().item(), rel=1e-4)
    tail = cross_entropy(logits[:, -DECODED:].flatten(0, 1), ids[:, -DECODED:].flatten())
    assert got.decode.reference_perplexity == pytest.approx(tail.exp().item(), rel=1e-4)


def test_fewer_bits_lose_more(measure: Measure, planned: tuple[Checkpoint, Plan]) -> None:
    eight = measure(lambda model: quantized(model, 8))
    four = measure(lambda model: quantized(model, 4))
    assert 1e-6 < eight.overall.mean_kl < 1e-3 < 1e-2 < four.overall.mean_kl < 0.2
    assert abs(eight.overall.perplexity_increase) < 0.005
    assert eight.overall.top1_agreement > 0.97 > four.overall.top1_agreement
    # 32 bits of scale for each 64 weights, and those of the tied weight twice.
    assert eight.bits_per_weight < 9.5
    limits = QualityLimits(max_kl=1e-3)
    refuse_breach(planned[0], [eight], limits)
    with pytest.raises(UserError, match=r"^trained-\w+ was not exported: the mean KL diverg") as e:
        refuse_breach(planned[0], [eight, four], limits)
    assert str(e.value).endswith("use more bits, prune less or allow more.")


def test_figures_are_those_of_the_weights_in_torch(
    measure: Measure, planned: tuple[Checkpoint, Plan], windows: TokenWindows
) -> None:
    """One layer's weight is scaled in the engine, and in transformers apart from it."""
    name = "model.layers.1.mlp.down_proj.weight"
    got = measure(lambda model: scaled(model, name, by=1.5)).overall
    model = AutoModelForCausalLM.from_pretrained(planned[0].directory)
    ids = torch.from_numpy(windows.held_out)
    with torch.no_grad():
        theirs = model(ids).logits[:, :-1].double()
        model.get_parameter(name).mul_(1.5)
        ours = model(ids).logits[:, :-1].double()
    kl = kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none")
    assert got.mean_kl == pytest.approx(kl.sum(-1).mean().item(), rel=1e-3)
    loss = cross_entropy(ours.flatten(0, 1), ids[:, 1:].flatten())
    assert got.perplexity == pytest.approx(loss.exp().item(), rel=1e-4)
    agreed = (theirs.argmax(-1) == ours.argmax(-1)).double().mean().item()
    assert got.top1_agreement == pytest.approx(agreed, abs=2 / got.tokens)


@pytest.mark.parametrize("by", [float("nan"), float("inf")])
def test_what_is_no_number_breaches_without_any_limit(
    measure: Measure, planned: tuple[Checkpoint, Plan], by: float
) -> None:
    got = measure(lambda model: scaled(model, "model.norm.weight", by=by))
    assert got.overall.non_finite == got.overall.tokens
    with pytest.raises(UserError, match="logits are NaN or infinite at 765 of 765 positions"):
        refuse_breach(planned[0], [got], QualityLimits())


@pytest.mark.parametrize("length", [2, 3, 20])
def test_short_windows(measure: Measure, windows: TokenWindows, length: int) -> None:
    got = measure(unchanged, np.ascontiguousarray(windows.held_out[:, :length]))
    assert got.overall.tokens == WINDOWS * (length - 1)
    assert 0 < got.decode.tokens <= got.overall.tokens
    assert abs(got.overall.mean_kl) < 1e-6


def test_a_disk_without_room_is_said(
    planned: tuple[Checkpoint, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporter import quality_gate

    usage = quality_gate.shutil.disk_usage(tmp_path)._replace(free=24_000_000)
    monkeypatch.setattr(quality_gate.shutil, "disk_usage", lambda _: usage)
    graph: Any = type("Graph", (), {"vocab_size": 2048})
    subject = Subject(tmp_path, graph, ("onnxruntime",))
    held_out = np.zeros((16, 256), np.int64)
    with pytest.raises(UserError, match=r"needs 33 MB for .* has 24 MB free: make room\.$"):
        measure_quality(planned[0], [subject], held_out, parameters=1, scratch=tmp_path)


GOOD = Quality(100, 10.0, 10.1, 0.001, 0.01, 0.99, 0)


def engine_quality(**figures: Any) -> EngineQuality:
    return replace(EngineQuality("the engine", GOOD, GOOD, 1000, 8.5, 500.0, 20.0), **figures)


def test_decoding_alone_can_breach() -> None:
    broken = engine_quality(decode=replace(GOOD, mean_kl=0.5, perplexity=20.0))
    assert broken.breach(QualityLimits(max_perplexity_increase=0.02)) is None
    said = broken.breach(QualityLimits(max_kl=0.01))
    assert said is not None
    assert said.startswith("when tokens are decoded one by one, the mean KL divergence")
    assert broken.breach(QualityLimits(max_kl=0.5)) is None


def test_the_report_says_all_of_it(windows: TokenWindows) -> None:
    bad = engine_quality(overall=replace(GOOD, mean_kl=float("inf"), non_finite=1))
    limits = QualityLimits(max_perplexity_increase=0.02)
    report = QualityReport([engine_quality(), bad], windows, limits)
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert data["engines"][0]["overall"]["perplexity_increase"] == pytest.approx(0.01)
    assert data["engines"][1]["overall"]["mean_kl"] is None
    assert data["windows"] == WINDOWS
    assert data["limits"] == {"max_kl": None, "max_perplexity_increase": 0.02}
    lines = "\n".join(report.markdown())
    assert "mean KL any, perplexity increase 2.00%" in lines
    assert "| the engine | 100 | 10 | 10.1 | +1.00% | 0.001 | 0.01 | 99.00% |" in lines
    assert "| the engine | 1,000 bytes | 8.50 | 500.0 | 20.0 |" in lines
    for table in lines.split("\n\n"):
        rows = [line.count("|") for line in table.split("\n") if line.startswith("|")]
        assert len(set(rows)) <= 1
