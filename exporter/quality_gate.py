"""The quality gate: engines as they will be served, against the float32 checkpoint, on real text.

The reference runs first and leaves its logits in a temporary file, so that memory never holds two
models. Each engine then prefills every window of held-out text in chunks and takes the last tokens
one by one, so that the kernels for many rows and for one row are both measured.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from engines.quality import QualityLimits, QualityTally
from exporter.checkpoint import Checkpoint, load
from exporter.gate import Subject
from exporter.parity import reference_logits
from exporter.plan import megabytes
from exporter.quality_report import EngineQuality
from serving.decoding import prefill
from serving.engine import Engine
from serving.errors import UserError

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

CHUNK = 128  # tokens of a prefill step; the logits of all of them are in memory
DECODED = 16  # last tokens of each window that are run one by one


def measure_quality(
    checkpoint: Checkpoint,
    subjects: Sequence[Subject],
    held_out: Tokens,
    *,
    parameters: int,
    scratch: Path,
) -> list[EngineQuality]:
    """Measure every subject on windows of text ``held_out`` [windows, length].

    ``parameters`` is how many weights the model has. The reference's logits, float32 [windows,
    length - 1, vocab], are in a file below the directory ``scratch`` meanwhile. Raises UserError
    where the disk has no room for it.
    """
    with _reference(checkpoint, held_out, subjects[0].graph.vocab_size, scratch) as reference:
        return [_measure(subject, held_out, reference, parameters) for subject in subjects]


def refuse_breach(
    checkpoint: Checkpoint, measured: Sequence[EngineQuality], limits: QualityLimits
) -> None:
    """Raise UserError if an engine breaches a limit, or gives something else than numbers."""
    for engine in measured:
        if said := engine.breach(limits):
            raise UserError(
                f"{checkpoint.name} was not exported: {said}; use more bits, prune less or allow "
                "more."
            )


@dataclass(frozen=True)
class _LogitsFile:
    """Logits float32 [windows, positions, vocab] on disk, read in parts.

    Not mapped: what is mapped and touched counts as this process's memory.
    """

    path: Path
    positions: int
    vocab_size: int

    def read(self, window: int, start: int, count: int) -> Floats:
        first = (window * self.positions + start) * self.vocab_size
        logits = np.fromfile(self.path, np.float32, count * self.vocab_size, offset=first * 4)
        return logits.reshape(count, self.vocab_size)


@contextmanager
def _reference(
    checkpoint: Checkpoint, windows: Tokens, vocab_size: int, scratch: Path
) -> Iterator[_LogitsFile]:
    """Run the float32 checkpoint in transformers; the file is gone afterwards."""
    positions = windows.shape[1] - 1
    size = windows.shape[0] * positions * vocab_size * 4
    free = shutil.disk_usage(scratch).free
    if free < size:
        raise UserError(
            f"Measuring the quality needs {megabytes(size)} for the checkpoint's logits and "
            f"{scratch} has {megabytes(free)} free: make room."
        )
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="reference-logits-") as file:
        model = load(checkpoint, torch.float32).model
        for window in windows:
            logits = reference_logits(model, window[:-1].tolist())
            if logits.shape != (positions, vocab_size):
                raise ValueError(f"logits {logits.shape} of the checkpoint, {vocab_size} expected")
            logits.tofile(file)
        del model
        file.flush()
        yield _LogitsFile(Path(file.name), positions, vocab_size)


def _measure(
    subject: Subject, windows: Tokens, reference: _LogitsFile, parameters: int
) -> EngineQuality:
    inputs, targets = windows[:, :-1], windows[:, 1:]
    prefilled = inputs.shape[1] - min(DECODED, (inputs.shape[1] + 1) // 2)
    overall, decode = QualityTally(), QualityTally()
    decode_seconds = 0.0
    with subject.open(slots=1, capacity=windows.shape[1]) as engine:
        for index, (tokens, following) in enumerate(zip(inputs, targets, strict=True)):
            for start in range(0, prefilled, CHUNK):
                stop = min(start + CHUNK, prefilled)
                ours = _step(engine, tokens, start, stop)
                overall.add(reference.read(index, start, stop - start), ours, following[start:stop])
            begin = time.perf_counter()
            steps = [_step(engine, tokens, p, p + 1).copy() for p in range(prefilled, len(tokens))]
            decode_seconds += time.perf_counter() - begin
            theirs = reference.read(index, prefilled, len(steps))
            for tally in (overall, decode):
                tally.add(theirs, np.concatenate(steps), following[prefilled:])
        # As it is served: with the logits of the last token only.
        begin = time.perf_counter()
        prefill(engine, inputs[0], 0, len(inputs[0]))
        prefill_seconds = time.perf_counter() - begin
    weight_bytes = subject.weight_bytes
    return EngineQuality(
        engine=subject.describe(),
        overall=overall.quality(),
        decode=decode.quality(),
        weight_bytes=weight_bytes,
        bits_per_weight=8 * weight_bytes / parameters,
        prefill_tokens_per_second=inputs.shape[1] / prefill_seconds,
        decode_tokens_per_second=(inputs.size - prefilled * len(inputs)) / decode_seconds,
    )


def _step(engine: Engine, tokens: Tokens, start: int, stop: int) -> Floats:
    """Run tokens ``start`` to ``stop`` of a sequence; see Engine.step. Returns [tokens, vocab]."""
    positions = np.arange(stop - start, dtype=np.int64)[None]
    logits: Floats = engine.step(tokens[None, start:stop], np.array([start]), positions)[0]
    return logits
