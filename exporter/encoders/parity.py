"""The parity gate of encoders: what was built, against transformers, on batches of all kinds.

Padding is right, left and in the middle of its row, and lengths go from the shortest to the longest
that a bundle takes: code that goes another way for long texts is found there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from exporter.encoders.tasks import SentenceSettings
from exporter.encoders.tracing import run_model
from exporter.parity import MAX_ERROR, MEAN_ERROR
from serving.contract import ATTENTION_MASK, INPUT_IDS, LOGITS_POSITIONS
from serving.encoders.contract import TOKEN_TYPE_IDS, Task, is_per_token, output_names
from serving.encoders.engine import EncoderEngine

Floats = npt.NDArray[np.float32]
Inputs = dict[str, npt.NDArray[np.int64]]

LENGTHS = (2, 5, 23)
LONGEST = 2048  # tokens of the longest row that is compared
_RAGGED = (23, 9, 16)


@dataclass(frozen=True)
class Batch:
    """Inputs for one run, and what kind of them these are."""

    name: str
    inputs: Inputs


@dataclass(frozen=True)
class EncoderComparison:
    """One batch: differences of all outputs where no padding is."""

    name: str
    values: int
    max_error: float
    mean_error: float


@dataclass(frozen=True)
class EncoderParity:
    """Outcome of the gate; errors and tolerances are shares of an output's largest value."""

    status: str
    reference: str
    engine: str
    tolerance_max: float
    tolerance_mean: float
    largest_values: dict[str, float]
    comparisons: tuple[EncoderComparison, ...]

    @property
    def passed(self) -> bool:
        """Whether the engine may be served."""
        return self.status == "passed"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and report.json."""
        return asdict(self)

    def reason(self) -> str:
        """Say in a clause what was breached."""
        worst = max(self.comparisons, key=lambda comparison: comparison.max_error)
        return (
            f"outputs differ by up to {worst.max_error:.3g} of the largest ({worst.name}; "
            f"{self.tolerance_max:.3g} allowed)"
        )


def merged(reports: Sequence[EncoderParity]) -> EncoderParity:
    """One report of several engines: it passed if all did."""
    first = next((report for report in reports if not report.passed), reports[0])
    return replace(
        first,
        engine="; ".join(dict.fromkeys(report.engine for report in reports)),
        comparisons=tuple(c for report in reports for c in report.comparisons),
    )


def gate_batches(
    names: Sequence[str], *, vocab_size: int, max_length: int, pad: int, task: Task
) -> Iterator[Batch]:
    """Batches of random tokens, fixed by a seed, with the inputs of these names."""
    random = np.random.default_rng(20240229)
    tokens = np.setdiff1d(np.arange(vocab_size), [pad])

    def batch(name: str, mask: npt.NDArray[np.int64]) -> Batch:
        ids = np.where(mask > 0, random.choice(tokens, mask.shape), pad)
        # Of each row some positions, padding among them where there is any.
        positions = random.integers(0, mask.shape[1], (len(mask), min(4, mask.shape[1])))
        given = {
            INPUT_IDS: ids,
            ATTENTION_MASK: mask,
            TOKEN_TYPE_IDS: (np.cumsum(mask, axis=1) > mask.sum(axis=1)[:, None] // 2) * mask,
            LOGITS_POSITIONS: positions if task == "fill-mask" else np.zeros((1, 0), np.int64),
        }
        return Batch(name, {n: np.ascontiguousarray(given[n], np.int64) for n in names})

    for length in sorted({min(n, max_length) for n in (*LENGTHS, LONGEST)}):
        yield batch(f"a text of {length} tokens", np.ones((1, length), np.int64))
    lengths = [min(length, max_length) for length in _RAGGED]
    right = np.array([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    yield batch("padding on the right", right)
    yield batch("padding on the left", right[:, ::-1])
    middle = right.copy()
    for row, length in zip(middle, lengths, strict=True):
        row[:] = np.roll(np.r_[row[:length], row[length:]], len(row) // 3)
        row[0] = row[-1] = 1  # so that the row doesn't begin or end with it
    yield batch("padding in the middle", middle)


def run_engine(engine: EncoderEngine, batches: Sequence[Batch], task: Task) -> list[list[Floats]]:
    """What an engine gives for each batch: all outputs."""
    return [engine.run(batch.inputs, output_names(task)) for batch in batches]


def run_reference(
    model: PreTrainedModel, batches: Sequence[Batch], task: Task, sentences: SentenceSettings
) -> list[list[Floats]]:
    """What transformers gives for each batch, and what follows from it for embeddings."""
    return [_reference(model, batch.inputs, task, sentences) for batch in batches]


@torch.no_grad()
def _reference(
    model: PreTrainedModel, inputs: Inputs, task: Task, sentences: SentenceSettings
) -> list[Floats]:
    given = {n: torch.from_numpy(a) for n, a in inputs.items() if n != LOGITS_POSITIONS}
    output = run_model(model, given)
    if task == "fill-mask":
        logits = output.logits.float().numpy()
        return [np.take_along_axis(logits, inputs[LOGITS_POSITIONS][:, :, None], axis=1)]
    if task == "embed":
        states = output.last_hidden_state.float().numpy()
        return [reference_embeddings(states, inputs[ATTENTION_MASK], sentences), states]
    return [getattr(output, name).float().numpy() for name in output_names(task)]


def reference_embeddings(
    states: Floats, mask: npt.NDArray[np.int64], sentences: SentenceSettings
) -> Floats:
    """Pooled states [batch, hidden], row by row and without padding."""
    rows = [row[own > 0].astype(np.float64) for row, own in zip(states, mask, strict=True)]
    pooled = {
        "mean": lambda row: row.mean(axis=0),
        "max": lambda row: row.max(axis=0),
        "cls": lambda row: row[0],
        "last": lambda row: row[-1],
    }
    vectors = np.stack([pooled[sentences.pooling](row) for row in rows])
    if sentences.normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def compare(
    ours: Sequence[Sequence[Floats]],
    theirs: Sequence[Sequence[Floats]],
    batches: Sequence[Batch],
    task: Task,
    *,
    engine: str,
    rounding: float | None = None,
) -> EncoderParity:
    """Compare what an engine gave with the reference.

    ``rounding`` is the largest difference that the engine's lower precision makes in transformers
    itself; None stands for float32, whose tolerance is a share of the largest value.
    """
    kept = [
        [_meaningful(name, task, batch.inputs) for name in output_names(task)] for batch in batches
    ]
    theirs = [[a[k] for a, k in zip(*pair, strict=True)] for pair in zip(theirs, kept, strict=True)]
    ours = [[a[k] for a, k in zip(*pair, strict=True)] for pair in zip(ours, kept, strict=True)]
    largest = [
        max(float(np.abs(array).max()) for array in arrays) for arrays in zip(*theirs, strict=True)
    ]
    comparisons = []
    for batch, *pair in zip(batches, ours, theirs, strict=True):
        parts = zip(*pair, largest, strict=True)
        error = np.concatenate([(np.abs(own - right) / size).ravel() for own, right, size in parts])
        # A NaN compares as no breach, so it is made the largest one.
        worst = float(error.max()) if np.isfinite(error).all() else float("inf")
        mean = float(error.mean(dtype=np.float64)) if np.isfinite(worst) else worst
        comparisons.append(EncoderComparison(batch.name, error.size, worst, mean))
    limit, mean_limit = MAX_ERROR, MEAN_ERROR
    if rounding is not None:
        limit, mean_limit = 4 * rounding, rounding
    close = all(c.max_error <= limit and c.mean_error <= mean_limit for c in comparisons)
    return EncoderParity(
        status="passed" if close else "failed",
        reference=f"transformers float32, {len(batches)} batches",
        engine=engine,
        tolerance_max=limit,
        tolerance_mean=mean_limit,
        largest_values=dict(zip(output_names(task), largest, strict=True)),
        comparisons=tuple(comparisons),
    )


def rounding_error(
    exact: Sequence[Sequence[Floats]],
    lower: Sequence[Sequence[Floats]],
    batches: Sequence[Batch],
    task: Task,
) -> float:
    """Largest difference that a lower precision makes within transformers; NaN where it fails."""
    report = compare(lower, exact, batches, task, engine="")
    return max(comparison.max_error for comparison in report.comparisons)


def _meaningful(name: str, task: Task, inputs: Inputs) -> Any:
    """Which rows of an output are no padding's."""
    mask = inputs[ATTENTION_MASK] > 0
    if task == "fill-mask":
        return np.take_along_axis(mask, inputs[LOGITS_POSITIONS], axis=1)
    return mask if is_per_token(task, name) else slice(None)
