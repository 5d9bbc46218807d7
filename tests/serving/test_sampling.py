"""Sampling against transformers' own logits processors."""

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serving.errors import UserError
from serving.sampling import (
    SamplingParameters,
    distribution,
    log_probs,
    penalize,
    random_state,
    sample,
    sample_after_draft,
    warp,
)

NONE = np.array([], np.int64)


def reference_warpers(parameters: SamplingParameters) -> list[LogitsProcessor]:
    """What transformers' generate builds, in its order."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(parameters.temperature))]
    if parameters.top_k:
        warpers.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1:
        warpers.append(TopPLogitsWarper(parameters.top_p))
    if parameters.min_p:
        warpers.append(MinPLogitsWarper(parameters.min_p))
    return warpers


@pytest.mark.parametrize("vocab", [7, 300, 50_000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(temperature=0.7),
        SamplingParameters(temperature=1.0, top_k=1),
        SamplingParameters(temperature=1.3, top_k=5),
        SamplingParameters(temperature=1.0, top_k=10**6),
        SamplingParameters(temperature=1.0, top_p=0.9),
        SamplingParameters(temperature=0.5, top_p=0.3),
        SamplingParameters(temperature=1.0, top_p=1e-6),
        SamplingParameters(temperature=1.0, min_p=0.05),
        SamplingParameters(temperature=1.0, min_p=1.0),
        SamplingParameters(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
    ],
)
def test_kept_set_and_scores_equal_transformers(
    parameters: SamplingParameters, spread: float, vocab: int
) -> None:
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal(vocab) * spread).astype(np.float32)
    expected = torch.from_numpy(logits)[None]
    for warper in reference_warpers(parameters):
        expected = warper(torch.zeros((1, 0), dtype=torch.long), expected)
    ours = warp(logits, parameters)
    np.testing.assert_array_equal(np.isfinite(ours), torch.isfinite(expected[0]).numpy())
    np.testing.assert_allclose(ours, expected[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("top_p", [0.1, 0.37, 0.5, 0.81, 0.99])
@pytest.mark.parametrize("top_k", [0, 3, 9])
def test_of_equal_tokens_as_many_are_kept_as_by_transformers(top_p: float, top_k: int) -> None:
    parameters = SamplingParameters(temperature=1.0, top_p=top_p, top_k=top_k)
    random = np.random.default_rng(3)
    for _ in range(50):
        logits = random.integers(-2, 3, 40).astype(np.float32)
        expected = torch.from_numpy(logits)[None]
        for warper in reference_warpers(parameters):
            expected = warper(torch.zeros((1, 0), dtype=torch.long), expected)
        ours = warp(logits, parameters)
        # torch's sort isn't stable: which of them it keeps isn't defined, only how many.
        np.testing.assert_array_equal(np.sort(ours), expected[0].sort().values.numpy())


def test_of_equal_tokens_top_p_keeps_the_lowest_ids() -> None:
    kept = np.isfinite(warp(np.zeros(10, np.float32), SamplingParameters(1.0, top_p=0.3)))
    assert np.flatnonzero(kept).tolist() == [0, 1, 2]
    kept = np.isfinite(warp(np.zeros(8, np.float32), SamplingParameters(1.0, top_p=1e-20)))
    assert np.flatnonzero(kept).tolist() == [0]


@pytest.mark.parametrize("penalty", [0.8, 1.3, 5.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal(100).astype(np.float32)
    prompt, generated = np.array([3, 3, 50, 99]), np.array([50, 7, 0])
    ids = torch.from_numpy(np.concatenate((prompt, generated)))[None]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.from_numpy(logits)[None])
    ours = penalize(logits, SamplingParameters(repetition_penalty=penalty), prompt, generated)
    np.testing.assert_array_equal(ours, expected[0].numpy())


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    logits = np.zeros(6, np.float32)
    parameters = SamplingParameters(presence_penalty=0.5, frequency_penalty=0.25)
    scores = penalize(logits, parameters, np.array([0, 1, 1]), np.array([1, 4, 4, 4]))
    np.testing.assert_array_equal(scores, np.float32([0, -0.75, 0, 0, -1.25, 0]))
    assert not logits.any(), "the engine's logits must stay as they are"


def test_bias_is_added_first_to_greedy_and_sampled_choices() -> None:
    logits = np.array([0.0, 1.0, 2.0, -np.inf], np.float32)
    bias = {0: 5.0, 2: -1.0, 3: 100.0, 9: 1.0}  # a draft model may lack id 9
    none = np.empty(0, np.int64)
    expected = np.array([5.0, 1.0, 1.0, -np.inf])
    sampled = SamplingParameters(temperature=1.0, logit_bias=bias)
    weights = np.exp(expected)
    np.testing.assert_allclose(
        distribution(logits, sampled, none, none), weights / weights.sum(), rtol=1e-6
    )
    greedy = SamplingParameters(logit_bias=bias)
    assert sample(logits, greedy, none, none, random_state(0)) == 0
    penalized = SamplingParameters(logit_bias=bias, repetition_penalty=5.0)
    scores = penalize(logits, penalized, np.array([0, 3]), none)
    assert scores.tolist() == [1.0, 1.0, 1.0, -np.inf]  # the biased 5 is divided
    assert logits.tolist() == [0.0, 1.0, 2.0, -np.inf]


def test_greedy_takes_the_lowest_index_of_a_tie() -> None:
    logits = np.float32([1, 3, 3, 0])
    assert sample(logits, SamplingParameters(), NONE, NONE, random_state(None)) == 1


def test_greedy_draws_nothing_from_the_random_state() -> None:
    state = random_state(1)
    sample(np.zeros(4, np.float32), SamplingParameters(), NONE, NONE, state)
    assert state.random() == random_state(1).random()


def test_sampled_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.float32([0.5, 0.25, 0.125, 0.125]))
    state, parameters = random_state(0), SamplingParameters(temperature=1.0)
    draws = [sample(logits, parameters, NONE, NONE, state) for _ in range(8000)]
    frequencies = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(frequencies, [0.5, 0.25, 0.125, 0.125], atol=0.02)


def test_dropped_tokens_are_never_drawn() -> None:
    logits = np.float32([0, 0, 5, 5, 5, 0])
    state, parameters = random_state(0), SamplingParameters(temperature=2.0, top_k=3)
    draws = {sample(logits, parameters, NONE, NONE, state) for _ in range(300)}
    assert draws == {2, 3, 4}


def test_log_probs_equal_torch() -> None:
    logits = np.random.default_rng(5).standard_normal(1000).astype(np.float32) * 4
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    ours = log_probs(logits, 17, 5)
    assert ours.chosen == pytest.approx(float(expected[17]), rel=1e-9)
    values, ids = expected.topk(5)
    assert [i for i, _ in ours.top] == ids.tolist()
    np.testing.assert_allclose([value for _, value in ours.top], values.numpy())


@pytest.mark.parametrize("top", [0, 2, 20])
def test_log_probs_of_equal_tokens_are_in_the_order_of_their_ids(top: int) -> None:
    ours = log_probs(np.zeros(10, np.float32), 4, top)
    assert [i for i, _ in ours.top] == list(range(min(top, 10)))
    assert ours.chosen == pytest.approx(-math.log(10))


@pytest.mark.parametrize("overflow", [np.nan, np.inf])
def test_an_overflow_is_an_error_and_not_a_token(overflow: float) -> None:
    logits = np.float32([0, overflow, 1])
    for temperature in (0.0, 1.0):
        parameters = SamplingParameters(temperature=temperature)
        with pytest.raises(UserError, match="NaN"):
            sample(logits, parameters, NONE, NONE, random_state(0))


def test_numbers_of_numpy_are_numbers() -> None:
    SamplingParameters(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int32(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"top_p": 2},
        {"top_p": 0},
        {"top_p": math.nan},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"seed": -1},
        {"logprobs": 21},
        {"logprobs": True},
    ],
)
def test_values_out_of_range_are_one_sentence(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(UserError, match=f"^{name} is .*must be.*: change {name}.$"):
        SamplingParameters(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab", [7, 3000])
@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(temperature=0.7, repetition_penalty=1.3),
        SamplingParameters(temperature=1.3, top_k=5),
        SamplingParameters(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
    ],
)
def test_the_distribution_is_that_of_transformers(
    parameters: SamplingParameters, vocab: int
) -> None:
    logits = np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)
    prompt, generated = np.array([1, 4]), np.array([4, 6])
    ids = torch.tensor([[1, 4, 4, 6]])
    scores = torch.from_numpy(logits)[None]
    if parameters.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty)(ids, scores)
    for warper in reference_warpers(parameters):
        scores = warper(ids, scores)
    expected = scores[0].double().softmax(-1).numpy()
    ours = distribution(logits, parameters, prompt, generated)
    np.testing.assert_allclose(ours, expected, atol=1e-7)
    assert ours.sum() == pytest.approx(1)


def test_the_distribution_of_a_greedy_choice_is_certain() -> None:
    logits = np.float32([1, 3, 3, 0])
    assert distribution(logits, SamplingParameters(), NONE, NONE).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "draft", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.0, 0.3], [0, 1, 0, 0]]
)
def test_after_a_draft_tokens_follow_the_target(draft: list[float]) -> None:
    target, other = np.array([0.1, 0.2, 0.3, 0.4]), np.array(draft, np.float64)
    state, n = random_state(0), 20_000
    drafted = state.choice(4, n, p=other)
    tokens = np.array([sample_after_draft(target, other, int(d), state) for d in drafted])
    counts = np.bincount(tokens, minlength=4)
    chi_square = ((counts - target * n) ** 2 / (target * n)).sum()
    assert chi_square < 16.27  # three degrees of freedom: one of a thousand is above
    # As often as any such choice can be (Leviathan et al. 2023, corollary 3.6).
    accepted = (tokens == drafted).mean()
    assert accepted == pytest.approx(np.minimum(target, other).sum(), abs=0.015)


def test_after_a_draft_that_the_target_excludes_comes_another() -> None:
    target, draft = np.array([0.0, 0.5, 0.5]), np.array([1.0, 0.0, 0.0])
    state = random_state(0)
    assert {sample_after_draft(target, draft, 0, state) for _ in range(50)} == {1, 2}
