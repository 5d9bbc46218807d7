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
from exporter.calibration_windows import TokenWindows
from exporter.checkpoint import Checkpoint, load
from exporter.gate import Subject, lowering_breach
from exporter.parity import reference_logits
from exporter.plan import Plan, megabytes
from exporter.quality_report import EngineQuality, QualityReport
from exporter.tokenization import special_tokens
from serving.decoding import prefill
from serving.engine import Engine, require_encoder
from serving.errors import UserError

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

CHUNK = 128  # tokens of a prefill step; the logits of all of them are in memory
DECODED = 16  # last tokens of each window that are run one by one


def check_quality(
    checkpoint: Checkpoint,
    plan: Plan,
    subjects: Sequence[Subject],
    windows: TokenWindows,
    limits: QualityLimits,
    scratch: Path,
) -> QualityReport:
    """Check lowered engines against their graphs, and all of them against the checkpoint."""
    for subject in subjects:
        if breach := lowering_breach(subject, windows.held_out[0]):
            raise UserError(f"{checkpoint.name} was not exported: {breach}.")
    text, sources = windows.held_out, None
    if checkpoint.is_encoder_decoder:
        text, sources = _halves(checkpoint, text)
    measured = measure_quality(
        checkpoint, subjects, text, sources, parameters=plan.parameters, scratch=scratch
    )
    refuse_breach(checkpoint, measured, limits)
    return QualityReport(measured, windows, limits)


def _halves(checkpoint: Checkpoint, windows: Tokens) -> tuple[Tokens, Tokens]:
    """Texts to decode, which go on from the token that outputs do, and the sources before them."""
    start = special_tokens(checkpoint, int(windows.max()) + 1).decoder_start
    sources, texts = np.array_split(windows, 2, axis=1)
    first = np.full((len(texts), 1), start or 0)
    return np.concatenate((first, texts), axis=1), np.ascontiguousarray(sources)


def measure_quality(
    checkpoint: Checkpoint,
    subjects: Sequence[Subject],
    held_out: Tokens,
    sources: Tokens | None = None,
    *,
    parameters: int,
    scratch: Path,
) -> list[EngineQuality]:
    """Measure every subject on windows of text ``held_out`` [windows, length].

    An encoder-decoder reads ``sources`` [windows, length of a source], of each window one.
    ``parameters`` is how many weights the model has. The reference's logits, float32 [windows,
    length - 1, vocab], are in a file below the directory ``scratch`` meanwhile. Raises UserError
    where the disk has no room for it.
    """
    vocab_size = subjects[0].graph.vocab_size
    with _reference(checkpoint, held_out, sources, vocab_size, scratch) as reference:
        return [_measure(subject, held_out, sources, reference, parameters) for subject in subjects]


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
    checkpoint: Checkpoint,
    windows: Tokens,
    sources: Tokens | None,
    vocab_size: int,
    scratch: Path,
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
        for index, window in enumerate(windows):
            source = None if sources is None else sources[index].tolist()
            logits = reference_logits(model, window[:-1].tolist(), source)
            if logits.shape != (positions, vocab_size):
                raise ValueError(f"logits {logits.shape} of the checkpoint, {vocab_size} expected")
            logits.tofile(file)
        del model
        file.flush()
        yield _LogitsFile(Path(file.name), positions, vocab_size)


def _measure(
    subject: Subject,
    windows: Tokens,
    sources: Tokens | None,
    reference: _LogitsFile,
    parameters: int,
) -> EngineQuality:
    inputs, targets = windows[:, :-1], windows[:, 1:]
    prefilled = inputs.shape[1] - min(DECODED, (inputs.shape[1] + 1) // 2)
    overall, decode = QualityTally(), QualityTally()
    decode_seconds = 0.0
    # As long as the text was before a source was taken of it, which a graph may be fixed to.
    capacity = windows.shape[1] + (sources.shape[1] - 1 if sources is not None else 0)
    with subject.open(slots=1, capacity=capacity) as engine:
        for index, (tokens, following) in enumerate(zip(inputs, targets, strict=True)):
            if sources is not None:
                require_encoder(engine).encode([sources[index]], 0)
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
