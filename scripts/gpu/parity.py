"""Tiny models in float16 through each engine, against transformers in float16 on the same GPU.

As the gate of an export does on the CPU: exporter/parity.py has the rules, ties included.
"""

import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from exporter.checkpoint import find_checkpoint, load
from exporter.embedding_parity import reference_embeddings
from exporter.export import Request, export
from exporter.parity import (
    ParityReport,
    compare,
    random_prompts,
    reference_logits,
    references,
    rounding_error,
    run_engine,
)
from scripts.gpu.outcome import Recorder
from scripts.gpu.worker import reason
from serving import loading
from serving.bundle import Target
from serving.errors import UserError
from tests.checkpoints import make_checkpoint

ARCHITECTURES = ("gpt2", "qwen2", "gemma2")
CAPACITY = 128
_WANTED = "greedy tokens equal but for ties"


class _NoDisplay:
    """Shows no stages."""

    def start(self, name: str) -> None:
        pass

    def progress(self, phase: str, done: float) -> None:
        pass


def check_onnxruntime(recorder: Recorder) -> None:
    """Each architecture through ONNX Runtime on CUDA."""
    _check_all(recorder, "onnxruntime", {"provider": "cuda"})


def check_tensorrt_rtx(recorder: Recorder) -> None:
    """Each architecture through TensorRT-RTX."""
    _check_all(recorder, "tensorrt-rtx", {"target": "tensorrt-rtx"})


def _check_all(recorder: Recorder, target: Target, options: dict[str, Any]) -> None:
    """Check every architecture, whatever becomes of the others; raises UserError if one failed."""
    failed = []
    for architecture in ARCHITECTURES:
        try:
            report, remarks = _check(architecture, target, options)
        except Exception as error:  # of whatever kind, it is this architecture's result
            traceback.print_exc()
            failed.append(architecture)
            recorder.record(architecture, reason(error), _WANTED)
            continue
        recorder.record(architecture, verdict(report), _WANTED)
        for remark in remarks:
            recorder.record(f"{architecture}, remark", remark, "none")
        if not report.passed:
            failed.append(architecture)
    if failed:
        raise UserError(f"{', '.join(failed)} did not agree with transformers: see the rows.")


def verdict(report: ParityReport) -> str:
    """What a report says, in a cell."""
    worst = max(comparison.max_error for comparison in report.comparisons)
    lowest = min(comparison.top1_agreement for comparison in report.comparisons)
    if not report.passed:
        return f"failed: {report.reason()}"
    tie = ", with a tie" if report.divergence is not None else ""
    return (
        f"{report.greedy_tokens} greedy tokens equal{tie}; logits within {worst:.2g} of "
        f"{report.tolerance_max:.2g} allowed; first choices agree at {lowest:.1%}"
    )


def _check(
    architecture: str, target: Target, options: dict[str, Any]
) -> tuple[ParityReport, list[str]]:
    with tempfile.TemporaryDirectory() as scratch:
        source, bundle = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        make_checkpoint(architecture, source)
        request = Request(
            str(source), bundle, "float16", targets=(target,), max_length=CAPACITY, batch=3
        )
        export(request, _NoDisplay())
        opened = loading.load(bundle, slots=3, capacity=CAPACITY, **options)
        with opened as model:
            prompts = random_prompts(model.engine.vocab_size, CAPACITY)
            runs = run_engine(model.engine, prompts, CAPACITY)
            remarks = list(getattr(model.engine, "remarks", []))
        checkpoint = find_checkpoint(str(source))
        half = load(checkpoint, torch.float16).model.cuda()
        exact = load(checkpoint, torch.float32).model.cuda()
        rounding, embedding_rounding = (
            rounding_error(references(measure, exact, runs), references(measure, half, runs))
            for measure in (reference_logits, reference_embeddings)
        )
        report = compare(
            runs, half, engine=target, rounding=rounding, embedding_rounding=embedding_rounding
        )
    return report, remarks
