"""Running the parity gate of encoders on everything that an export built."""

from collections.abc import Sequence

import torch

from exporter.calibration_windows import Tokens
from exporter.checkpoint import Checkpoint
from exporter.encoders.building import EncoderSubject
from exporter.encoders.loading import load_encoder
from exporter.encoders.parity import (
    LONGEST,
    Batch,
    EncoderParity,
    Floats,
    compare,
    gate_batches,
    merged,
    rounding_error,
    run_engine,
    run_reference,
)
from exporter.encoders.plan import EncoderPlan
from exporter.encoders.quality import EncoderQuality, measure, text_inputs
from serving.bundle import EncoderInfo
from serving.encoders.contract import input_names
from serving.encoders.engine import EncoderEngine
from serving.errors import UserError


def check_encoder_parity(
    checkpoint: Checkpoint,
    plan: EncoderPlan,
    encoder: EncoderInfo,
    subjects: Sequence[EncoderSubject],
    pad: int,
) -> EncoderParity:
    """Run every subject, then compare each with transformers.

    The engines are closed before the reference is loaded, so that memory holds the weights once.
    """
    task, sentences = plan.task, plan.sentences
    batches = list(
        gate_batches(
            input_names(task, token_types=plan.token_types),
            vocab_size=encoder.vocab_size,
            max_length=min(plan.longest or plan.max_length, LONGEST),
            pad=pad,
            task=task,
        )
    )
    runs = []
    for subject in subjects:
        with EncoderEngine(subject.file, encoder) as engine:
            runs.append(run_engine(engine, batches, task))
    reference = load_encoder(checkpoint, task, torch.float32).model
    exact = run_reference(reference, batches, task, sentences)
    del reference
    rounding = None
    if plan.dtype == "float16":
        rounding = _float16_error(checkpoint, plan, batches, exact)
    return merged(
        [
            compare(run, exact, batches, task, engine=subject.describe(), rounding=rounding)
            for subject, run in zip(subjects, runs, strict=True)
        ]
    )


def check_encoder_quality(
    checkpoint: Checkpoint,
    plan: EncoderPlan,
    encoder: EncoderInfo,
    subjects: Sequence[EncoderSubject],
    held_out: Sequence[Tokens],
) -> list[EncoderQuality]:
    """Compare quantised engines with the float32 checkpoint; raises UserError for too much loss."""
    task = plan.task
    names = input_names(task, token_types=plan.token_types)
    batches = [Batch("", text_inputs(tokens, names)) for tokens in held_out]
    runs = []
    for subject in subjects:
        with EncoderEngine(subject.file, encoder) as engine:
            runs.append(run_engine(engine, batches, task))
    reference = load_encoder(checkpoint, task, torch.float32).model
    exact = run_reference(reference, batches, task, plan.sentences)
    measured = [
        measure(run, exact, task, engine=subject.describe())
        for subject, run in zip(subjects, runs, strict=True)
    ]
    for quality in measured:
        if said := quality.breach():
            raise UserError(
                f"{checkpoint.name} was not exported: {said}; calibrate with text of its own kind, "
                "use --int8, or export it without quantisation."
            )
    return measured


def _float16_error(
    checkpoint: Checkpoint, plan: EncoderPlan, batches: Sequence[Batch], exact: list[list[Floats]]
) -> float:
    """What float16 loses in transformers, or what follows from bfloat16 if that leaves its range.

    bfloat16 has the range of float32, and 3 bits fewer than float16.
    """
    error = float("inf")
    for dtype, share in ((torch.float16, 1.0), (torch.bfloat16, 1 / 8)):
        if not error < float("inf"):
            model = load_encoder(checkpoint, plan.task, dtype).model
            lower = run_reference(model, batches, plan.task, plan.sentences)
            error = share * rounding_error(exact, lower, batches, plan.task)
    return error
