"""Beam search: equal to transformers', and every beam's KV row is that of its own tokens."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import serving
from serving import Generation, Model, UserError
from serving.beam_search import BeamParameters, BeamSearch, assign_rows
from serving.bundle import SpecialTokens
from serving.decoding import Limits, Sequence, prefill
from serving.engine import FloatArray, IntArray
from serving.sampling import SamplingParameters, log_softmax
from tests.exports import export_bundle, once
from tests.serving.counting_engine import VOCAB, CountingEngine, continuation, next_token

PROMPTS = [
    *("def main(", "class Parser", "import", "for i in range", "    return ", "The ", "if self."),
    *("# ", "raise ", "x = ", "def __init__(self", "while True:\n", '"""Return ', "try:\n    "),
    *("    def test", "assert ", "with open(", "    elif ", "@property\n", "print('a', "),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"early_stopping": True},
    {"early_stopping": "never", "length_penalty": 1.2},
    {"early_stopping": "never", "length_penalty": -0.5, "min_new_tokens": 4},
    {"repetition_penalty": 1.3, "length_penalty": 0.0, "min_new_tokens": 3},
    {"bad_words_ids": [[18, 18], [297, 370], [262], [223, 19], [300]], "length_penalty": 0.5},
]
CHUNK = 7
TIGHT = {"rtol": 2e-6, "atol": 1e-6}


def expected(
    reference: PreTrainedModel, ids: list[int], eos: tuple[int, ...], **settings: Any
) -> tuple[list[list[int]], list[float], int]:
    """What transformers finds: tokens without padding, and scores, best first; and its steps."""
    inputs = torch.tensor([ids])
    output = reference.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        num_return_sequences=settings["num_beams"],
        eos_token_id=list(eos),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    found = []
    for row in output.sequences[:, len(ids) :].tolist():
        ends = [i for i, token in enumerate(row) if token in eos]
        found.append(row[: ends[0] + 1] if ends else row)
    return found, output.sequences_scores.tolist(), len(output.scores)


def assert_equal(
    model: Model, reference: PreTrainedModel, prompts: list[list[int]], **settings: Any
) -> list[Generation]:
    """Compare all beams of all prompts; returns what was found."""
    found = []
    for ids in prompts:
        with patch.object(model.engine, "step", wraps=model.engine.step) as step:
            group = model.generate(ids, num_return_sequences=settings["num_beams"], **settings)
        sequences, scores, steps = expected(reference, ids, model.tokens.eos, **settings)
        assert [result.token_ids for result in group] == sequences
        np.testing.assert_allclose([result.score for result in group], scores, **TIGHT)
        # The search ends where theirs does; the first of their steps is our last of the prompt.
        assert step.call_count == steps + (len(ids) - 1) // CHUNK
        found += group
    return found


@pytest.fixture(scope="module")
def trained(
    trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Model, PreTrainedModel]]:
    bundle = once(
        tmp_path_factory, "trained/float32", lambda path: export_bundle(trained_checkpoint, path)
    )
    reference = AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32)
    with serving.load(bundle, slots=4, threads=1) as model:
        yield model, reference.eval()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sequences_order_and_scores_equal_transformers(
    trained: tuple[Model, PreTrainedModel], settings: dict[str, Any]
) -> None:
    loaded, reference = trained
    prompts = [loaded.encode(prompt) for prompt in PROMPTS]
    eos = (*loaded.tokens.eos, *loaded.encode("\n"), *range(300, 420))
    model = Model(loaded.engine, SpecialTokens(eos=eos), prefill_chunk=CHUNK)
    found = assert_equal(model, reference, prompts, num_beams=4, max_new_tokens=24, **settings)
    reasons = {result.finish_reason for result in found}
    assert reasons == {"stop", "length"}, "the test needs sequences of both kinds"


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_tiny_architectures_with_many_eos_ids_equal_transformers(
    architecture: str,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = checkpoint(architecture)
    bundle = once(
        tmp_path_factory, f"{architecture}-float32", lambda path: export_bundle(directory, path)
    )
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 400, length).tolist() for length in (1, 9, 30)]
    found = []
    with serving.load(bundle, slots=5) as loaded:
        eos = tuple(range(3, loaded.engine.vocab_size, 12))
        model = Model(loaded.engine, SpecialTokens(eos=eos), prefill_chunk=CHUNK)
        for beams, settings in itertools.product((2, 5), SETTINGS[:3]):
            found += assert_equal(
                model, reference, prompts, num_beams=beams, max_new_tokens=20, **settings
            )
    assert {result.finish_reason for result in found} == {"stop", "length"}


def test_results_are_lists_only_where_several_are_asked_for(
    trained: tuple[Model, PreTrainedModel],
) -> None:
    model, _ = trained
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8}
    best = model.generate("x = ", **options)
    assert isinstance(best, Generation)
    assert best.score is not None
    assert best.prompt_tokens == len(model.encode("x = "))
    assert model.tokenizer is not None
    assert best.text == model.tokenizer.decode(best.token_ids)
    assert model.generate("x = ", num_return_sequences=1, **options) == [best]
    several = model.generate("x = ", num_return_sequences=3, **options)
    assert several[0] == best
    scores = [result.score or 0 for result in several]
    assert scores == sorted(scores, reverse=True)
    assert model.generate(["x = ", "The "], **options)[0] == best
    lists = model.generate(["The ", "x = "], num_return_sequences=3, **options)
    assert lists[1] == several
    assert model.generate("x = ", max_new_tokens=8).score is None


def begin(
    engine: CountingEngine,
    ids: list[int],
    beams: BeamParameters,
    new: int,
    eos: tuple[int, ...] = (),
    first_slot: int = 0,
) -> BeamSearch:
    limits = Limits(100, new, min_new_tokens=0, eos=eos, stop=())
    sequence = Sequence(0, np.array(ids), SamplingParameters(), limits, None)
    running = BeamSearch(engine, sequence, beams, first_slot)
    running.begin(prefill(engine, sequence.prompt_ids, first_slot, CHUNK))
    return running


def true_score(ids: list[int], generated: list[int]) -> float:
    """Mean log-probability of what follows ``ids``, from the counting engine's rule alone."""
    total = 0.0
    for i, token in enumerate(generated):
        distances = np.abs(np.arange(VOCAB) - next_token(ids + generated[:i])) / 8
        total += -distances[token] - np.log(np.exp(-distances).sum())
    return float(total / len(generated))


@pytest.mark.parametrize("beams", [2, 3, 4, 8])
@pytest.mark.parametrize("first_slot", [0, 3])
def test_every_row_holds_its_own_beam_and_no_other_slot_is_touched(
    beams: int, first_slot: int
) -> None:
    engine = CountingEngine(slots=12)
    engine.keys[:] = -1
    for ids in ([5, 9, 1, 30, 2, 2, 7], [3]):
        parameters = BeamParameters(beams, num_return_sequences=beams)
        running = begin(engine, ids, parameters, 25, (7, 40), first_slot)
        while not running.finished:
            running.advance()
        found = running.hypotheses
        assert len({tuple(hypothesis.token_ids) for hypothesis in found}) == beams
        for hypothesis in found:
            score = true_score(ids, hypothesis.token_ids)
            assert hypothesis.score == pytest.approx(score, rel=1e-5)
        rows = slice(first_slot, first_slot + beams)
        assert (np.delete(engine.keys, rows, axis=0) == -1).all()
        assert all(step[0] == first_slot and step[1] in (1, beams) for step in engine.steps)


def test_one_advance_is_one_step_so_that_others_can_run_between() -> None:
    engine = CountingEngine(slots=5)
    other = [1, 2, 3]
    prefill(engine, np.array(other), slot=0, chunk=8)
    running = begin(engine, list(range(1, 11)), BeamParameters(4), 12, first_slot=1)
    engine.steps.clear()
    while not running.finished:
        running.advance()
        last = continuation(other, 1)
        ids = np.array([last])
        logits = engine.step(ids, np.array([len(other)]), np.zeros_like(ids))
        other += last
        assert logits[0, 0].argmax() == continuation(other, 1)[0]
    assert engine.steps[::2] == [(1, 4, 1)] * 11


def test_only_what_differs_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CountingEngine(slots=4)
    moves: list[tuple[int, int, int, int]] = []
    move = engine.cache.move

    def record(from_slot: int, to_slot: int, length: int, start: int = 0) -> None:
        before = engine.keys.copy()
        # What is left out is equal already, and the first position copied is not.
        assert (before[from_slot, :start] == before[to_slot, :start]).all()
        assert start == 0 or before[from_slot, start] != before[to_slot, start]
        moves.append((from_slot, to_slot, length, start))
        move(from_slot, to_slot, length, start)

    monkeypatch.setattr(engine.cache, "move", record)
    ids = list(range(1, 31))
    running = begin(engine, ids, BeamParameters(4), 20)
    assert moves == [(0, 1, 30, 0), (0, 2, 30, 0), (0, 3, 30, 0)]
    while not running.finished:
        running.advance()
    later = moves[3:]
    assert len(later) > 5
    assert all(start >= len(ids) for *_, start in later)
    assert len(later) < 19 * 3, "some beams stay where they are"


def test_rows_are_assigned_with_the_fewest_copies_and_none_too_early() -> None:
    for n in range(1, 5):
        for parents in itertools.product(range(4), repeat=n):
            rows = assign_rows(parents)
            assert sorted(rows) == list(range(n))
            held = list(range(4))
            moves = [(p, row) for p, row in zip(parents, rows, strict=True) if p != row]
            for parent, row in moves:
                held[row] = held[parent]
            assert [held[row] for row in rows] == list(parents)
            assert len(moves) == n - len({parent for parent in parents if parent < n})


class NarrowEngine(CountingEngine):
    """Allows one to three next tokens, so that there are fewer continuations than beams."""

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        logits = super().step(input_ids, past_lengths, logits_positions, first_slot)
        for row in logits.reshape(-1, self.vocab_size):
            row[np.abs(np.arange(len(row)) - row.argmax()) > row.argmax() % 2] = -np.inf
        return logits


def every_sequence(ids: list[int], eos: int, new: int) -> dict[tuple[int, ...], float]:
    """All sequences that a narrow engine allows, with their mean log-probabilities."""
    found: dict[tuple[int, ...], float] = {}
    open_sequences: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while open_sequences:
        sequence, total = open_sequences.pop()
        if sequence and (sequence[-1] == eos or len(sequence) == new):
            found[sequence] = total / len(sequence)
            continue
        engine, row = NarrowEngine(), np.array([[*ids, *sequence]])
        logits = engine.step(row, np.array([0]), np.array([[row.shape[1] - 1]]))[0]
        with np.errstate(divide="ignore"):
            values = log_softmax(logits)[0]
        allowed = np.flatnonzero(values > -np.inf).tolist()
        open_sequences += [((*sequence, token), total + float(values[token])) for token in allowed]
    return found


def test_with_fewer_continuations_than_beams_all_of_them_are_found() -> None:
    counts = set()
    for ids in ([1, 2, 3], [5, 9], [4, 4, 1]):
        for eos in continuation(ids, 4)[1:3]:
            engine = NarrowEngine(slots=82)  # three to the power of four, and one
            running = begin(engine, ids, BeamParameters(82, num_return_sequences=82), 4, eos=(eos,))
            while not running.finished:
                running.advance()
            found = {tuple(h.token_ids): h.score for h in running.hypotheses}
            assert found == pytest.approx(every_sequence(ids, eos, 4), rel=1e-5)
            counts.add(len(found))
    assert len(counts) > 2


def test_kv_memory_stays_where_it_is() -> None:
    model = Model(CountingEngine(slots=4), SpecialTokens(eos=()))
    before = {key: buffer.address for key, buffer in model.engine.cache.buffers.items()}
    best = model.generate([1, 2, 3], num_beams=4)
    assert len(best.token_ids) == 97  # until the capacity
    assert {key: buffer.address for key, buffer in model.engine.cache.buffers.items()} == before


def test_nan_is_an_error() -> None:
    class Broken(CountingEngine):
        def step(self, *arguments: Any) -> FloatArray:
            return np.full_like(super().step(*arguments), np.nan)

    with pytest.raises(UserError, match="NaN"):
        Model(Broken(), SpecialTokens(eos=())).generate([1], num_beams=2, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 5}, "num_beams is 5, but there are 4 slots: open the bundle with slots=5"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2.0}, "num_beams is 2.0"),
        ({"num_beams": True}, "num_beams is True"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
        ({"num_beams": 2, "length_penalty": 11}, "length_penalty is 11"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping is 'always'"),
        ({"num_beams": 2, "num_return_sequences": 3}, "from 1 to num_beams, which is 2"),
        ({"num_beams": 2, "num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"num_return_sequences": 2}, "belong to beam search: set num_beams above 1"),
        ({"length_penalty": 2.0}, "belong to beam search"),
        ({"early_stopping": True}, "belong to beam search"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature can't be combined with beam search"),
        ({"num_beams": 2, "logprobs": 0}, "logprobs can't be combined"),
        ({"num_beams": 2, "stream": True}, "stream can't be combined"),
        ({"num_beams": 2, "speculation": "prompt-lookup"}, "speculation can't be combined"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(options: dict[str, Any], message: str) -> None:
    engine = CountingEngine(slots=4)
    with pytest.raises(UserError, match=message):
        Model(engine, SpecialTokens(eos=())).generate([1, 2], max_new_tokens=3, **options)
    assert not engine.steps


def test_stop_strings_are_refused(trained: tuple[Model, PreTrainedModel]) -> None:
    with pytest.raises(UserError, match="stop can't be combined"):
        trained[0].generate("x", num_beams=2, stop="\n")
