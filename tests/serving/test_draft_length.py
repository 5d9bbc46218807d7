"""Draft lengths from measured costs: what a simulation finds fastest."""

import numpy as np
import pytest

from serving.draft_length import DRAFT_LENGTHS, Acceptance, StepCosts, best_length

CHEAP = {1: 1.0, 2: 1.0, 4: 1.1, 8: 1.2, 16: 1.4, 32: 1.8}  # an engine at the memory bound
DEAR = {1: 1.0, 2: 2.6, 4: 2.6, 8: 2.7, 16: 2.9, 32: 3.7}  # one whose second row costs much


def costs_of(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for tokens, value in seconds.items():
        costs.record(tokens, value)
    return costs


def acceptance_of(rate: float) -> Acceptance:
    acceptance = Acceptance(rate, 1 - rate)
    assert acceptance.rate == pytest.approx(rate)
    return acceptance


def simulated_rate(seconds: dict[int, float], rate: float, length: int) -> float:
    """Tokens a second when every drafted token is right with probability ``rate``."""
    right = np.random.default_rng(0).random((20_000, length)) < rate
    accepted = np.cumprod(right, axis=1).sum(1)
    return float((accepted + 1).mean() / seconds[length + 1])


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("seconds", [CHEAP, DEAR])
def test_the_chosen_length_is_the_fastest(seconds: dict[int, float], rate: float) -> None:
    chosen = best_length(costs_of(seconds), acceptance_of(rate), 0, 31, 0.0)
    rates = {length: simulated_rate(seconds, rate, length) for length in DRAFT_LENGTHS}
    if max(rates.values()) < 1.08:  # too little is gained
        assert chosen == 0
    elif max(rates.values()) > 1.12:
        assert rates[chosen] > 0.98 * max(rates.values())


def test_dear_rows_need_a_higher_acceptance() -> None:
    assert best_length(costs_of(CHEAP), acceptance_of(0.5), 0, 31, 0.0) > 0
    assert best_length(costs_of(DEAR), acceptance_of(0.5), 0, 31, 0.0) == 0


def test_a_draft_is_not_longer_than_allowed() -> None:
    for most in range(32):
        assert best_length(costs_of(CHEAP), acceptance_of(0.99), 0, most, 0.0) <= most
    assert best_length(costs_of(CHEAP), acceptance_of(0.99), 0, 2, 0.0) == 1


def test_a_dear_draft_model_drafts_less() -> None:
    lengths = [
        best_length(costs_of(CHEAP), acceptance_of(0.9), 0, 31, seconds)
        for seconds in (0.0, 0.1, 0.3, 2.0)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[1] > lengths[-1] == 0


def test_decoding_together_has_to_be_beaten() -> None:
    """Four rows in one step at hardly more than the cost of one, or each alone."""
    costs = costs_of(CHEAP | {3: 1.05})
    alone, beside = (best_length(costs, acceptance_of(0.6), n, 31, 0.0) for n in (0, 3))
    assert alone > 0
    assert beside == 0
    assert best_length(costs, acceptance_of(0.99), 3, 31, 0.0) > 0


def test_lengths_are_tried_one_after_the_other() -> None:
    costs, tried = costs_of({1: 1.0}), []
    for _ in range(6):
        tried.append(best_length(costs, acceptance_of(0.95), 0, 31, 0.0))
        costs.record(tried[-1] + 1, CHEAP[tried[-1] + 1])
    assert tried == [1, 3, 7, 15, 31, 31]


def test_nothing_is_drafted_before_a_step_is_known() -> None:
    assert best_length(StepCosts(), acceptance_of(0.99), 0, 31, 0.0) == 0
    assert best_length(costs_of({1: 1.0}), acceptance_of(0.99), 1, 31, 0.0) == 0


def test_costs_follow_steps_and_forgive_an_interrupted_one() -> None:
    costs = costs_of({1: 1.0, 8: 5.0})
    assert costs.seconds(1) == 1
    assert costs.seconds(2) == pytest.approx(1 + 4 / 7)
    assert costs.seconds(20) == 5
    costs.record(1, 1000.0)
    assert costs.seconds(1) < 1.5
    for _ in range(30):
        costs.record(1, 3.0)
    assert costs.seconds(1) == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("length", [1, 3, 15])
def test_expected_tokens_equal_their_frequencies(rate: float, length: int) -> None:
    right = np.random.default_rng(1).random((40_000, length)) < rate
    simulated = 1 + np.cumprod(right, axis=1).sum(1).mean()
    assert acceptance_of(rate).expected_tokens(length) == pytest.approx(simulated, rel=0.03)


def test_acceptance_follows_what_happens() -> None:
    acceptance = Acceptance(1, 1)
    assert acceptance.rate == 0.5
    for _ in range(40):
        acceptance.record(0, 1)
    assert acceptance.rate < 0.05
    acceptance.record(15, 15)
    assert acceptance.rate > 0.7
    acceptance.record(3, 4)
    assert 0.5 < acceptance.rate < 0.9
