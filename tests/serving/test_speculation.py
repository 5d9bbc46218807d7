"""Speculative decoding gives what plain decoding gives, on an engine that shows a wrong cache."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serving import Model, UserError
from serving.bundle import SpecialTokens
from serving.decoding import Decoder, Limits, Sequence, SpeculationMethod, Token
from serving.draft_model import DraftModel
from serving.engine import FloatArray, IntArray
from serving.mixed_decoder import MixedDecoder
from serving.pacing import Pacing
from serving.prompt_lookup import PromptLookup
from serving.request_queue import Job
from serving.sampling import SamplingParameters
from serving.scheduler import Scheduler
from serving.speculation import Speculation
from tests.serving.counting_engine import (
    VOCAB,
    CountingEngine,
    continuation,
    repetitive_token,
)
from tests.serving.fixed_costs import FixedCosts

METHODS: tuple[SpeculationMethod, ...] = ("prompt-lookup", "draft")
RAGGED = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13, 1, 1, 1], [2, 2], [3]]


def draft_token(ids: list[int]) -> int:
    """What a draft model would say that is wrong now and then."""
    return (repetitive_token(ids) + (sum(ids) % 5 == 0)) % VOCAB


def make_model(
    slots: int = 3, capacity: int = 200, a_token: float = 0.01, **special: Any
) -> tuple[Model, CountingEngine]:
    letters = [chr(0x100 + i) for i in range(VOCAB - 1)]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    engine = CountingEngine(slots, capacity, repetitive_token)
    draft = CountingEngine(slots, capacity, draft_token)
    model = Model(engine, SpecialTokens(**special), tokenizer, draft=draft)
    model._step_costs = FixedCosts(a_token)
    return model, engine


def drafts(tokens: list[Token]) -> tuple[int, int]:
    return sum(t.drafted for t in tokens), sum(t.speculated for t in tokens)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_every_prompt_continues_as_if_alone(method: SpeculationMethod, slots: int) -> None:
    model, engine = make_model(slots)
    streamed = list(model.generate(RAGGED, max_new_tokens=90, stream=True, speculation=method))
    for index, ids in enumerate(RAGGED):
        own = [token.token_id for token in streamed if token.index == index]
        assert own == continuation(ids, 90, repetitive_token)
    drafted, accepted = drafts(streamed)
    if slots < 7:  # beside many that decode together a draft is seldom worth a step of its own
        assert drafted > accepted > 50, "the test needs drafts that hold and drafts that don't"
        assert max(tokens for _, _, tokens in engine.steps) > 7


@pytest.mark.parametrize("method", METHODS)
def test_sequences_that_end_at_different_times_leave_no_trace(method: SpeculationMethod) -> None:
    eos = (9, 50)
    prompts = [[token, token // 3, 5] for token in range(1, 30)]
    model, _ = make_model(eos=eos)
    lengths = set()
    for ids, result in zip(
        prompts, model.generate(prompts, max_new_tokens=40, speculation=method), strict=True
    ):
        expected = continuation(ids, 40, repetitive_token)
        ends = [i for i, token in enumerate(expected) if token in eos]
        expected = expected[: ends[0] + 1] if ends else expected
        assert result.token_ids == expected
        assert result.finish_reason == ("stop" if ends else "length")
        lengths.add(len(expected))
    assert len(lengths) > 3


OPTIONS: list[dict[str, Any]] = [
    {"max_new_tokens": 77},
    {},  # the capacity is filled
    {"max_new_tokens": 1},
    {"max_new_tokens": 60, "logprobs": 3},
    {"max_new_tokens": 60, "min_new_tokens": 30},
    {"max_new_tokens": 60, "ignore_eos": True},
    {"max_new_tokens": 60, "temperature": 0.15, "seed": 3},
    {"max_new_tokens": 60, "temperature": 0.1, "top_p": 0.9, "seed": 4, "logprobs": 0},
    {"max_new_tokens": 60, "temperature": 0.1, "frequency_penalty": 0.01, "seed": 5},
    {"max_new_tokens": 60, "repetition_penalty": 1.02},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_results_equal_those_without(method: SpeculationMethod, given: dict[str, Any]) -> None:
    prompts = [[1, 2, 3, 4, 5, 1, 2, 3], [7, 7, 7, 7], [40, 3, 5, 60, 2, 8] * 3, [11]]
    model, engine = make_model(slots=1, capacity=100, eos=(continuation(prompts[2], 20)[-1],))
    plain = model.generate(prompts, **given)
    assert engine.steps
    assert model.generate(prompts, **given, speculation=method) == plain
    if given.get("max_new_tokens") != 1:
        tokens = list(model.generate(prompts, **given, speculation=method, stream=True))
        assert drafts(tokens)[1] > 0, "the test needs accepted drafts"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [None, 40])
def test_a_draft_leaves_room_for_the_token_after_it(
    method: SpeculationMethod, limit: int | None
) -> None:
    model, _ = make_model(capacity=100)
    ids = [1, 2, 3, 4, 5] * 4
    tokens = list(model.generate(ids, max_new_tokens=limit, stream=True, speculation=method))
    assert len(tokens) == (limit or 80)
    for done, token in enumerate(tokens):
        assert done + token.drafted + 1 <= len(tokens)


@pytest.mark.parametrize("method", METHODS)
def test_a_stop_string_inside_a_draft_ends_the_text(method: SpeculationMethod) -> None:
    model, _ = make_model()
    whole = model.generate([1, 2, 3, 4, 5], max_new_tokens=90).text
    found = 0
    for start in range(40, 60):
        given: dict[str, Any] = {"max_new_tokens": 90, "stop": whole[start : start + 4]}
        tokens = list(model.generate([1, 2, 3, 4, 5], **given, speculation=method, stream=True))
        assert model.generate([1, 2, 3, 4, 5], **given, speculation=method) == (
            model.generate([1, 2, 3, 4, 5], **given)
        )
        found += tokens[-1].speculated
    assert found > 3


def test_what_costs_more_than_it_gives_is_not_run() -> None:
    """Random text, and a second token for 1.4 times the cost."""

    def random_token(ids: list[int]) -> int:
        return int(np.random.default_rng(ids).integers(VOCAB))

    engine = CountingEngine(1, 600, random_token)
    model = Model(engine, SpecialTokens())
    model._step_costs = FixedCosts(0.6)
    model.generate(RAGGED[0], max_new_tokens=500, speculation="prompt-lookup")
    assert len(engine.steps) - 1 - engine.steps[1:].count((0, 1, 1)) <= 5
    model, engine = make_model()
    model.generate(RAGGED[0], max_new_tokens=150, speculation="prompt-lookup")
    assert len(engine.steps) < 75, "text that does repeat takes half the steps"


def test_a_bad_draft_model_is_tried_seldom() -> None:
    def always_wrong(ids: list[int]) -> int:
        return (repetitive_token(ids) + 1) % VOCAB

    engine, draft = (CountingEngine(1, 600, rule) for rule in (repetitive_token, always_wrong))
    model = Model(engine, SpecialTokens(), draft=draft)
    model._step_costs = FixedCosts(a_token=1.0)
    tokens = list(model.generate([1, 2], max_new_tokens=500, speculation="draft", stream=True))
    assert drafts(tokens)[1] == 0
    drafting = [i for i, token in enumerate(tokens) if token.drafted]
    assert 2 < len(drafting) < 50
    assert drafting[-1] > 100, "it must be tried again"


class SmallEngine(CountingEngine):
    """Three tokens whose logits depend on the last two, through a fixed table."""

    def __init__(self, seed: int) -> None:
        super().__init__(slots=1, capacity=40, vocab=3)
        self.table = np.random.default_rng(seed).standard_normal((3, 3, 3)).astype(np.float32)

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        ids, past = self.keys[first_slot], int(past_lengths[0])
        ids[past : past + input_ids.shape[1]] = input_ids[0]
        last = past + logits_positions
        logits: FloatArray = self.table[ids[last - 1].astype(int), ids[last].astype(int)]
        return logits


class EagerLookup(PromptLookup):
    """Has its first drafts run at once: these texts are short."""

    is_free = False


def exact_probabilities(
    engine: SmallEngine, prompt: list[int], new: int, parameters: SamplingParameters
) -> dict[tuple[int, ...], float]:
    """Probability of every continuation: temperature, top-k and presence penalty by definition."""
    result = {}
    for tokens in itertools.product(range(3), repeat=new):
        probability, ids = 1.0, list(prompt)
        for token in tokens:
            scores = engine.table[ids[-2], ids[-1]].astype(np.float64)
            scores[list(set(ids[len(prompt) :]))] -= parameters.presence_penalty
            scores /= parameters.temperature
            if parameters.top_k:
                scores[np.argsort(scores)[: -parameters.top_k]] = -np.inf
            weights = np.exp(scores)
            probability *= weights[token] / weights.sum()
            ids.append(token)
        result[tokens] = probability
    return result


@pytest.mark.parametrize("method", [*METHODS, None])
@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(temperature=1.0),
        SamplingParameters(temperature=0.8, top_k=2, presence_penalty=0.7),
    ],
    ids=["plain", "penalised"],
)
def test_sampled_texts_follow_the_exact_distribution(
    method: SpeculationMethod | None, parameters: SamplingParameters
) -> None:
    """Chi-square over all texts of five tokens; without speculation the test checks itself."""
    engine, prompt, samples, new = SmallEngine(0), [1, 2, 0, 1, 2, 0, 1, 2], 1500, 5
    limits = Limits(engine.cache.capacity, new, 0, (), ())
    sequences = [Sequence(i, np.array(prompt), parameters, limits, None) for i in range(samples)]
    for i, sequence in enumerate(sequences):
        sequence.random = np.random.default_rng((7, i))
    drafters = DraftModel(SmallEngine(1), 3, 8)
    costs = FixedCosts(0.0)
    decoder: Decoder = MixedDecoder(engine, None, costs)
    if method is not None:
        decoder = Speculation(EagerLookup if method == "prompt-lookup" else drafters.open, costs)
    scheduler = Scheduler(engine, decoder, Pacing(8, engine.cache.slots))
    for sequence in sequences:
        scheduler.submit(Job(sequence))
    tokens = [event for event in scheduler.run() if isinstance(event, Token)]
    if method is not None:
        drafted, accepted = drafts(tokens)
        assert drafted > accepted > samples / 4
        assert drafters.free_slots == [0]

    counts = Counter(tuple(sequence.generated_ids.tolist()) for sequence in sequences)
    expected = exact_probabilities(engine, prompt, new, parameters)
    assert not any(counts[text] for text, probability in expected.items() if probability == 0)
    frequent = [text for text, probability in expected.items() if probability * samples >= 5]
    cells = [(counts[text], expected[text] * samples) for text in frequent]
    cells.append(tuple(samples - sum(column) for column in zip(*cells, strict=True)))
    chi_square = sum((count - mean) ** 2 / mean for count, mean in cells)
    # Chi-square with n degrees of freedom is above this in one of a thousand (Wilson, Hilferty).
    n = len(cells) - 1
    assert n > 20
    assert chi_square < n * (1 - 2 / (9 * n) + 3.09 * (2 / (9 * n)) ** 0.5) ** 3


def test_a_seed_draws_the_same_text_with_every_method() -> None:
    model, _ = make_model(slots=2)
    given: dict[str, Any] = {"max_new_tokens": 50, "temperature": 0.3, "seed": 11}
    plain = model.generate([[1, 2, 3], [1, 2, 3]], **given)
    assert plain[0] == plain[1]
    for method in METHODS:
        assert model.generate([[1, 2, 3], [1, 2, 3]], **given, speculation=method) == plain


def test_a_stream_that_is_broken_off_frees_the_draft_slots() -> None:
    model, _ = make_model(slots=2)
    for _ in range(3):
        stream = model.generate(RAGGED, max_new_tokens=50, speculation="draft", stream=True)
        for _ in range(9):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
    result = model.generate([1, 2], max_new_tokens=50, speculation="draft")
    assert result.token_ids == continuation([1, 2], 50, repetitive_token)


@pytest.mark.parametrize(
    ("method", "message"),
    [("draft", "no draft model: .* draft="), ("other", "speculation is 'other'")],
)
def test_a_method_that_cannot_be_is_one_sentence(method: Any, message: str) -> None:
    model = Model(CountingEngine(), SpecialTokens())
    with pytest.raises(UserError, match=message):
        model.generate([1, 2], speculation=method)


def test_closing_a_model_closes_its_draft() -> None:
    engine, draft = CountingEngine(), CountingEngine()
    with Model(engine, SpecialTokens(), draft=draft):
        assert not draft.is_closed
    assert engine.is_closed
    assert draft.is_closed
