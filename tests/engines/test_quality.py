"""The figures against torch's own, and the limits, which nothing that isn't a number passes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from engines import quality as quality_module
from engines.quality import Quality, QualityLimits, QualityTally, breach

VOCAB = 300
POSITIONS = 250


def logits(noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    reference = (4 * random.standard_normal((POSITIONS, VOCAB)) - 50).astype(np.float32)
    engine = (reference + noise * random.standard_normal(reference.shape)).astype(np.float32)
    # What all logits of a position have in common changes no probability.
    engine += random.uniform(-20, 20, (POSITIONS, 1)).astype(np.float32)
    return reference, engine, random.integers(0, VOCAB, POSITIONS)


def measured(reference: np.ndarray, engine: np.ndarray, targets: np.ndarray) -> Quality:
    tally = QualityTally()
    tally.add(reference, engine, targets)
    return tally.quality()


@pytest.mark.parametrize("chunk", [1, 7 * VOCAB + 5, 4_000_000])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3, 5.0])
def test_figures_equal_those_of_torch(
    noise: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_module, "_CHUNK", chunk)
    reference, engine, targets = logits(noise)
    theirs, ours = (torch.from_numpy(array).double() for array in (reference, engine))
    following = torch.from_numpy(targets)
    kl = kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none").sum(
        1
    )
    got = measured(reference, engine, targets)
    assert got.tokens == POSITIONS
    assert got.non_finite == 0
    # Logits near 50 are float32 with 4e-6 between two of them, which is what can be told apart.
    assert got.mean_kl == pytest.approx(kl.mean().item(), rel=1e-5, abs=1e-6)
    assert got.kl_99 == pytest.approx(
        torch.quantile(kl, 0.99, interpolation="higher").item(), rel=1e-4, abs=1e-6
    )
    assert got.reference_perplexity == pytest.approx(
        math.exp(cross_entropy(theirs, following).item()), rel=1e-6
    )
    assert got.perplexity == pytest.approx(
        math.exp(cross_entropy(ours, following).item()), rel=1e-6
    )
    agreed = (theirs.argmax(1) == ours.argmax(1)).double().mean().item()
    assert got.top1_agreement == pytest.approx(agreed)


def test_the_direction_is_from_the_reference_to_the_engine() -> None:
    sure, unsure = np.array([[9, 0, 0]], np.float32), np.zeros((1, 3), np.float32)
    target = np.zeros(1, np.int64)
    assert measured(sure, unsure, target).mean_kl == pytest.approx(math.log(3), abs=0.01)
    assert measured(unsure, sure, target).mean_kl > 4


def test_equal_logits_lose_nothing() -> None:
    reference, _, targets = logits()
    got = measured(reference, reference.copy(), targets)
    assert (got.mean_kl, got.kl_99, got.perplexity_increase) == (0, 0, 0)
    assert got.top1_agreement == 1
    assert breach(got, QualityLimits(max_kl=0, max_perplexity_increase=0)) is None


def test_positions_add_up() -> None:
    reference, engine, targets = logits()
    tally = QualityTally()
    for part in (slice(0, 1), slice(1, 200), slice(200, None)):
        tally.add(reference[part], engine[part], targets[part])
    whole = measured(reference, engine, targets)
    for name, value in whole.as_dict().items():
        assert tally.quality().as_dict()[name] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("limits", [QualityLimits(), QualityLimits(1e9, 1e9)])
def test_no_number_is_a_breach(value: float, side: int, limits: QualityLimits) -> None:
    both = logits()
    both[side][17, 5] = value
    got = measured(*both)
    assert breach(got, limits) == "logits are NaN or infinite at 1 of 250 positions"
    assert not got.mean_kl <= 1e9
    assert not got.perplexity_increase <= 1e9
    assert got.as_dict()["mean_kl"] is None


def test_one_bad_position_of_a_thousand_is_not_lost_in_the_rest() -> None:
    """Even where only figures are looked at, and not ``non_finite``."""
    reference, engine, targets = (np.repeat(array, 4, axis=0) for array in logits(0.01))
    engine[0, 0] = np.nan
    hidden = replace(measured(reference, engine, targets), non_finite=0)
    assert breach(hidden, QualityLimits(max_kl=1.0)) is not None
    assert breach(hidden, QualityLimits(max_perplexity_increase=1.0)) is not None


def test_nothing_measured_is_a_breach() -> None:
    assert breach(QualityTally().quality(), QualityLimits()) == "no token was measured"


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (QualityLimits(), None),
        (QualityLimits(max_kl=0.02), None),
        (QualityLimits(max_kl=0.019), "KL divergence from the checkpoint is 0.02 nats (0.019 all"),
        (QualityLimits(max_perplexity_increase=0.11), None),
        (
            QualityLimits(max_perplexity_increase=0.09),
            "perplexity rises by 10.00% from 10 to 11 (9.00% allowed)",
        ),
        (QualityLimits(0.019, 0.11), "KL divergence"),
        (QualityLimits(0.02, 0.09), "perplexity rises"),
        (QualityLimits(max_kl=float("nan")), "KL divergence"),
        (QualityLimits(max_perplexity_increase=float("nan")), "perplexity rises"),
    ],
)
def test_limits(limits: QualityLimits, says: str | None) -> None:
    said = breach(Quality(100, 10.0, 11.0, 0.02, 0.5, 0.97, 0), limits)
    assert said is None if says is None else said is not None and says in said


def test_logits_of_other_shapes_are_refused() -> None:
    reference, engine, targets = logits()
    with pytest.raises(ValueError, match="shapes differ"):
        measured(reference, engine[:, :-1], targets)
    with pytest.raises(ValueError, match="shapes differ"):
        measured(reference, engine, targets[:-1])
