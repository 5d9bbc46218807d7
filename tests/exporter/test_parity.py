"""The rules of the parity gate, with logits made by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exporter.parity import (
    CHUNK,
    MAX_ERROR,
    EngineRun,
    ParityReport,
    compare,
    merged,
    random_prompts,
    run_engine,
)
from serving.engine import IntArray
from serving.kv_cache import HostBuffer, KVCache

VOCAB = 8
PROMPT = [1, 2, 3]
TOP = 10.0
LARGEST = 20.0


class Reference:
    """Stands for a transformers model: prefers the next token by 1, with logits up to ``TOP``."""

    device = torch.device("cpu")

    def __init__(self, tie: float = 1.0, *, nan: bool = False) -> None:
        self.tie, self.nan = tie, nan
        self.head = torch.nn.Linear(2, VOCAB)

    def logits(self, tokens: list[int]) -> np.ndarray:
        logits = np.zeros((len(tokens), VOCAB), np.float32)
        for row, token in zip(logits, tokens, strict=True):
            row[(token + 1) % VOCAB] = TOP
            row[(token + 2) % VOCAB] = TOP - self.tie
            if self.nan:
                row[0] = np.nan
        return logits

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        self.head(torch.from_numpy(embeddings(input_ids[0].tolist()))[None])
        return SimpleNamespace(logits=torch.from_numpy(self.logits(input_ids[0].tolist()))[None])


def embeddings(tokens: list[int]) -> np.ndarray:
    """What the head of the reference gets, of up to ``LARGEST``."""
    return np.array([[token, LARGEST] for token in tokens], np.float32)


def perfect_run(reference: Reference, tokens: list[int]) -> EngineRun:
    logits = reference.logits([*PROMPT, *tokens[:-1]])
    prefill, decode = logits[: len(PROMPT)].copy(), logits[len(PROMPT) :].copy()
    return EngineRun(PROMPT, tokens, prefill, prefill.copy(), decode)


def report(run: EngineRun, reference: Reference, rounding: float | None = None) -> ParityReport:
    return compare([run], reference, engine="by hand", rounding=rounding)  # type: ignore[arg-type]


def test_equal_logits_pass() -> None:
    reference = Reference()
    outcome = report(perfect_run(reference, [4, 5, 6]), reference)
    assert outcome.passed
    assert outcome.divergence is None
    assert outcome.greedy_tokens == 3
    assert outcome.largest_logit == TOP
    assert [c.positions for c in outcome.comparisons] == [3, 3, 2]
    assert [c.top1_agreement for c in outcome.comparisons] == [1, 1, 1]


@pytest.mark.parametrize("part", ["prefill", "chunked", "decode"])
@pytest.mark.parametrize("error", [1.1 * MAX_ERROR * TOP, np.nan, np.inf])
def test_one_wrong_logit_anywhere_is_a_breach(part: str, error: float) -> None:
    reference = Reference()
    run = perfect_run(reference, [4, 5, 6])
    getattr(run, part)[-1, 0] += error
    outcome = report(run, reference)
    assert not outcome.passed
    name = {"chunked": "chunked prefill", "decode": "ragged decode"}.get(part, part)
    assert f"({name}; " in outcome.reason()


def test_small_errors_everywhere_are_a_breach() -> None:
    reference = Reference()
    run = perfect_run(reference, [4, 5, 6])
    outcome = report(replace(run, prefill=run.prefill + 0.9 * MAX_ERROR * TOP), reference)
    assert outcome.comparisons[0].max_error < outcome.tolerance_max
    assert not outcome.passed


@pytest.mark.parametrize("error", [1.1 * MAX_ERROR * LARGEST, np.nan, np.inf])
def test_a_wrong_embedding_is_a_breach(error: float) -> None:
    reference = Reference()
    run = replace(perfect_run(reference, [4, 5, 6]), embeddings=embeddings(PROMPT))
    outcome = report(run, reference)
    assert outcome.passed
    assert outcome.embeddings is not None
    assert (outcome.embeddings.positions, outcome.embeddings.largest) == (3, LARGEST)
    assert run.embeddings is not None
    run.embeddings[1, 0] += error
    outcome = report(run, reference)
    assert not outcome.passed
    assert "embeddings differ by up to" in outcome.reason()
    assert not merged([report(perfect_run(reference, [4, 5, 6]), reference), outcome]).passed


def test_embeddings_in_half_precision_are_allowed_their_own_rounding() -> None:
    reference = Reference()
    run = replace(perfect_run(reference, [4, 5, 6]), embeddings=embeddings(PROMPT) + 0.09)
    for rounding, passes in ((None, False), (0.05, False), (0.1, True)):
        outcome = compare(
            [run],
            reference,  # type: ignore[arg-type]
            engine="by hand",
            rounding=0.1,
            embedding_rounding=rounding,
        )
        assert outcome.passed is passes


def test_another_token_is_a_divergence() -> None:
    reference = Reference(tie=1.0)
    outcome = report(perfect_run(reference, [4, 6, 7]), reference)
    assert not outcome.passed
    assert outcome.divergence is not None
    assert (outcome.divergence.position, outcome.divergence.reference_token) == (1, 5)
    assert outcome.divergence.margin == 1.0
    assert "greedy decoding diverges at token 1 of prompt 0" in outcome.reason()


def test_another_token_that_is_as_likely_is_a_tie() -> None:
    reference = Reference(tie=0.5 * MAX_ERROR * TOP)
    outcome = report(perfect_run(reference, [4, 6, 7]), reference)
    assert outcome.passed
    assert outcome.divergence is not None


def test_half_precision_is_allowed_its_rounding_and_no_more() -> None:
    reference = Reference()
    run = perfect_run(reference, [4, 5, 6])
    run.prefill[-1, 0] += 0.3
    assert not report(run, reference).passed
    assert report(run, reference, rounding=0.1).passed
    assert not report(run, reference, rounding=0.05).passed


def test_a_reference_with_nan_proves_nothing() -> None:
    reference = Reference(nan=True)
    assert not report(perfect_run(Reference(), [4, 5, 6]), reference).passed


class RecordingEngine:
    """Counts up, and records which slots and lengths it is asked for."""

    vocab_size = VOCAB
    weight_bytes = 0
    chooser = None

    def __init__(self) -> None:
        self.cache = KVCache((), "float32", 3, 256, HostBuffer)
        self.steps: list[tuple[int, ...]] = []

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> np.ndarray:
        self.steps.append((*input_ids.shape, *past_lengths.tolist(), first_slot))
        asked = np.take_along_axis(input_ids, logits_positions, axis=1)
        return np.stack([Reference().logits(row.tolist()) for row in asked])

    def close(self) -> None:
        pass


def test_the_engine_runs_whole_in_chunks_and_ragged() -> None:
    engine = RecordingEngine()
    runs = run_engine(engine, [[1] * 9, [2]], 20)
    assert engine.steps[:2] == [(1, 9, 0, 0), (1, 1, 0, 1)]
    assert engine.steps[2:5] == [(1, CHUNK, 0, 0), (1, 2, CHUNK, 0), (1, 1, 0, 1)]
    assert engine.steps[5:] == [(2, 1, 9 + i, 1 + i, 0) for i in range(10)]
    assert [run.tokens[:3] for run in runs] == [[2, 3, 4], [3, 4, 5]]
    assert [len(run.tokens) for run in runs] == [11, 11]


@pytest.mark.parametrize("max_length", [2, 3, 30, 256])
def test_prompts_leave_room(max_length: int) -> None:
    prompts = random_prompts(VOCAB, max_length)
    assert len(prompts) == 3
    assert all(prompt and len(prompt) < max_length for prompt in prompts)
    assert prompts == random_prompts(VOCAB, max_length)


def test_at_least_64_tokens_are_compared() -> None:
    longest = max(map(len, random_prompts(VOCAB, 256)))
    assert min(len(run.tokens) for run in run_engine(RecordingEngine(), [[1] * longest], 256)) >= 64
