"""The parity gate: the engine as it will be served, against transformers.

The engine prefills ragged prompts whole and in chunks and decodes them greedily in one batch. Then
transformers computes every position of the resulting sequences in one pass each. If its first
choice agrees at each position, its own greedy decoding gives the same tokens, by induction.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from exporter.adapters import adapted
from exporter.embedding_parity import (
    EmbeddingParity,
    compare_embeddings,
    reference_embeddings,
    reference_inputs,
)
from serving.engine import EmbeddingEngine, Engine, SourceEngine
from serving.lora import Adapter

Floats = npt.NDArray[np.float32]
Measure = Callable[[PreTrainedModel, Sequence[int], Sequence[int] | None], Floats]

PROMPT_LENGTHS = (23, 9, 16)
# The longest goes beyond 128 tokens, where T5's relative positions end.
SOURCE_LENGTHS = (37, 8, 150)
NEW_TOKENS = 64
CHUNK = 7
# Largest and mean difference of logits in float32, as a share of the largest logit.
MAX_ERROR, MEAN_ERROR = 2e-4, 2e-5


@dataclass(frozen=True)
class EngineRun:
    """What the engine did with one prompt: logits are float32 [positions, vocab].

    ``embeddings`` are the prompt's last hidden states [positions, hidden], if it gives them, and
    ``adapter`` is the one that it had, if any. An encoder-decoder had a ``source``. The token that
    is ``avoided`` is never chosen.
    """

    prompt: list[int]
    tokens: list[int]
    prefill: Floats
    chunked: Floats
    decode: Floats
    embeddings: Floats | None = None
    adapter: Adapter | None = None
    source: list[int] | None = None
    avoided: int | None = None


@dataclass(frozen=True)
class Comparison:
    """One way of running the engine against the reference, over all positions."""

    name: str
    positions: int
    max_error: float
    mean_error: float
    top1_agreement: float


@dataclass(frozen=True)
class Divergence:
    """The first position where the engine and the reference choose different tokens."""

    prompt: int
    position: int
    engine_token: int
    reference_token: int
    margin: float
    """By how much the reference prefers its own token, in logits."""


@dataclass(frozen=True)
class ParityReport:
    """Outcome of the gate; errors are in logits, tolerances too."""

    status: str
    reference: str
    engine: str
    tolerance_max: float
    tolerance_mean: float
    largest_logit: float
    greedy_tokens: int
    comparisons: tuple[Comparison, ...]
    divergence: Divergence | None
    embeddings: EmbeddingParity | None = None

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
        text = (
            f"logits differ by up to {worst.max_error:.3g} ({worst.name}; "
            f"{self.tolerance_max:.3g} allowed)"
        )
        if self.divergence is not None:
            text += (
                f", greedy decoding diverges at token {self.divergence.position} of prompt "
                f"{self.divergence.prompt}"
            )
        if self.embeddings is not None and not self.embeddings.passed:
            text += (
                f", embeddings differ by up to {self.embeddings.max_error:.3g} "
                f"({self.embeddings.tolerance_max:.3g} allowed)"
            )
        return text


def merged(reports: Sequence[ParityReport], others_are: str = "other graph") -> ParityReport:
    """One report of several runs: it passed if all did; the first gives the common figures.

    ``others_are`` says in their names what the runs after the first are.
    """
    first, *others = reports
    if not others:
        return first
    comparisons = list(first.comparisons)
    for report in others:
        comparisons += [replace(c, name=f"{c.name}, {others_are}") for c in report.comparisons]
    failed = next((report for report in reports if not report.passed), first)
    return replace(
        first,
        status=failed.status,
        engine="; ".join(dict.fromkeys(report.engine for report in reports)),
        tolerance_max=failed.tolerance_max,
        tolerance_mean=failed.tolerance_mean,
        greedy_tokens=min(report.greedy_tokens for report in reports),
        comparisons=tuple(comparisons),
        divergence=failed.divergence,
        embeddings=failed.embeddings or first.embeddings,
    )


def random_prompts(vocab_size: int, max_length: int) -> list[list[int]]:
    """Ragged prompts of random tokens, fixed by a seed, that leave room to decode."""
    random = np.random.default_rng(20240229)
    longest = max(1, max_length - min(NEW_TOKENS, max_length // 2))
    return [random.integers(0, vocab_size, min(n, longest)).tolist() for n in PROMPT_LENGTHS]


def random_sources(vocab_size: int, max_length: int) -> list[list[int]]:
    """Ragged sources of random tokens for the random prompts, fixed by a seed."""
    random = np.random.default_rng(20240301)
    lengths = (min(n, max_length) for n in SOURCE_LENGTHS)
    return [random.integers(0, vocab_size, n).tolist() for n in lengths]


def run_engine(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_length: int,
    sources: Sequence[Sequence[int]] | None = None,
    avoided: int | None = None,
) -> list[EngineRun]:
    """Prefill each prompt whole and in chunks, then decode all of them greedily in one batch.

    An encoder-decoder encodes its ``sources``, of each prompt one, by themselves for whole prompts
    and else in one batch, with padding.
    """
    _encode(engine, sources, together=False)
    prefill = [_prefill(engine, prompt, slot, len(prompt)) for slot, prompt in enumerate(prompts)]
    _encode(engine, sources, together=True)
    chunked = [_prefill(engine, prompt, slot, CHUNK) for slot, prompt in enumerate(prompts)]
    new_tokens = min(NEW_TOKENS, max_length - max(map(len, prompts)))
    tokens = [[_likeliest(logits[-1], avoided)] for logits in chunked]
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    decoded: list[list[Floats]] = [[] for _ in prompts]
    last = np.zeros((len(prompts), 1), dtype=np.int64)
    for step in range(new_tokens - 1):
        newest = np.array([[row[-1]] for row in tokens], dtype=np.int64)
        logits = engine.step(newest, lengths + step, last)
        for row in range(len(prompts)):
            decoded[row].append(logits[row, 0].copy())
            tokens[row].append(_likeliest(logits[row, 0], avoided))
    empty = np.zeros((0, engine.vocab_size), dtype=np.float32)
    return [
        EngineRun(
            list(prompt),
            tokens[row],
            prefill[row],
            chunked[row],
            np.stack(decoded[row]) if decoded[row] else empty,
            _embeddings(engine, prompt, row),
            source=list(sources[row]) if sources is not None else None,
            avoided=avoided,
        )
        for row, prompt in enumerate(prompts)
    ]


def compare(
    runs: Sequence[EngineRun],
    model: PreTrainedModel,
    *,
    engine: str,
    rounding: float | None = None,
    embedding_rounding: float | None = None,
) -> ParityReport:
    """Compare what the engine did with ``model`` in float32.

    ``rounding`` is the largest difference of logits that the engine's lower precision makes in
    transformers itself, and ``embedding_rounding`` that of embeddings; None stands for float32,
    whose tolerance is a share of the largest value.
    """
    tallies = {name: _Tally() for name in ("prefill", "chunked prefill", "ragged decode")}
    largest, divergence = 0.0, None
    for index, run in enumerate(runs):
        with adapted(model, run.adapter):
            reference = reference_logits(model, [*run.prompt, *run.tokens[:-1]], run.source)
        largest = max(largest, float(np.abs(reference).max()))
        prompt, decoded = np.split(reference, [len(run.prompt)])
        parts = ((run.prefill, prompt), (run.chunked, prompt), (run.decode, decoded))
        for tally, (ours, theirs) in zip(tallies.values(), parts, strict=True):
            tally.add(ours, theirs)
        divergence = divergence or _divergence(index, run, reference)
    comparisons = tuple(tally.comparison(name) for name, tally in tallies.items())
    limit, mean_limit = MAX_ERROR * largest, MEAN_ERROR * largest
    if rounding is not None:
        limit, mean_limit = 4 * rounding, rounding
    # A choice between two tokens closer than the tolerance is a tie, not a divergence.
    diverged = divergence is not None and divergence.margin > limit
    embeddings = _compare_embeddings(runs, model, embedding_rounding)
    alike = embeddings is None or embeddings.passed
    close = all(c.max_error <= limit and c.mean_error <= mean_limit for c in comparisons)
    lengths = ", ".join(str(len(run.prompt)) for run in runs)
    return ParityReport(
        status="passed" if close and alike and not diverged else "failed",
        reference=f"transformers float32, {len(runs)} prompts of {lengths} tokens",
        engine=engine,
        tolerance_max=limit,
        tolerance_mean=mean_limit,
        largest_logit=largest,
        greedy_tokens=min(len(run.tokens) for run in runs),
        comparisons=comparisons,
        divergence=divergence,
        embeddings=embeddings,
    )


def _compare_embeddings(
    runs: Sequence[EngineRun], model: PreTrainedModel, rounding: float | None
) -> EmbeddingParity | None:
    """Compare the embeddings of all prompts, if the engine gave them."""
    ours = [run.embeddings for run in runs if run.embeddings is not None]
    if not ours:
        return None
    theirs = references(reference_embeddings, model, runs)
    shares = MAX_ERROR, MEAN_ERROR
    return compare_embeddings(ours, theirs, shares=shares, rounding=rounding)


def references(measure: Measure, model: PreTrainedModel, runs: Sequence[EngineRun]) -> list[Floats]:
    """What ``measure`` finds of each run's prompt in ``model``, with the run's adapter."""
    found = []
    for run in runs:
        with adapted(model, run.adapter):
            found.append(measure(model, run.prompt, run.source))
    return found


def reference_logits(
    model: PreTrainedModel, tokens: Sequence[int], source: Sequence[int] | None = None
) -> Floats:
    """Logits of every position in one pass of transformers, float32 [positions, vocab]."""
    with torch.no_grad():
        output = model(**reference_inputs(model, tokens, source), use_cache=False, return_dict=True)
    logits: Floats = output.logits[0].float().cpu().numpy()
    return logits


def rounding_error(exact: Sequence[Floats], lower: Sequence[Floats]) -> float:
    """Largest difference that a lower precision makes within transformers, over all prompts."""
    return max(
        float(np.abs(wide - rounded).max()) for wide, rounded in zip(exact, lower, strict=True)
    )


def _prefill(engine: Engine, prompt: Sequence[int], slot: int, chunk: int) -> Floats:
    parts = []
    for start in range(0, len(prompt), chunk):
        ids = np.array([prompt[start : start + chunk]], dtype=np.int64)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None]
        past = np.array([start], dtype=np.int64)
        parts.append(engine.step(ids, past, positions, first_slot=slot)[0].copy())
    return np.concatenate(parts)


def _encode(engine: Engine, sources: Sequence[Sequence[int]] | None, *, together: bool) -> None:
    if sources is None:
        return
    assert isinstance(engine, SourceEngine)
    arrays = [np.array(source, dtype=np.int64) for source in sources]
    if together:
        engine.encode(arrays, 0)
        return
    for slot, array in enumerate(arrays):
        engine.encode([array], slot)


def _likeliest(logits: Floats, avoided: int | None) -> int:
    if avoided is not None:
        logits = logits.copy()
        logits[avoided] = -np.inf
    return int(logits.argmax())


def _embeddings(engine: Engine, prompt: Sequence[int], slot: int) -> Floats | None:
    """The last hidden states of a prompt that is run in chunks, if the engine gives them."""
    if not isinstance(engine, EmbeddingEngine) or engine.hidden_size is None:
        return None
    parts = [
        engine.embed(np.array([prompt[start : start + CHUNK]]), np.array([start]), slot)[0]
        for start in range(0, len(prompt), CHUNK)
    ]
    return np.concatenate(parts)


@dataclass
class _Tally:
    """Adds up differences over prompts, so that only one prompt's logits are in memory."""

    positions: int = 0
    agreed: int = 0
    elements: int = 0
    total: float = 0.0
    worst: float = 0.0

    def add(self, ours: Floats, theirs: Floats) -> None:
        if len(ours) == 0:
            return
        error = np.abs(ours - theirs)
        # A NaN compares as no breach, so it is made the largest one.
        worst = float(error.max()) if np.isfinite(error).all() else float("inf")
        self.worst = max(self.worst, worst)
        self.positions += len(ours)
        self.agreed += int((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum())
        self.elements += error.size
        self.total += float(error.sum(dtype=np.float64))

    def comparison(self, name: str) -> Comparison:
        if self.positions == 0:
            return Comparison(name, 0, 0.0, 0.0, 1.0)
        mean, agreement = self.total / self.elements, self.agreed / self.positions
        return Comparison(name, self.positions, self.worst, mean, agreement)


def _divergence(index: int, run: EngineRun, reference: Floats) -> Divergence | None:
    for position, token in enumerate(run.tokens):
        logits = reference[len(run.prompt) - 1 + position]
        best = _likeliest(logits, run.avoided)
        if best != token:
            return Divergence(index, position, token, best, float(logits[best] - logits[token]))
    return None
