"""What an engine's logits lose against those of the reference, in numbers."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.scoring import perplexity, softmax_parts

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

_CHUNK = 4_000_000  # logits compared at once; a handful of arrays of that size come into being


@dataclass(frozen=True)
class QualityLimits:
    """The most that an engine may lose; None is no limit.

    ``max_kl`` is in nats a token, ``max_perplexity_increase`` a fraction (0.01 is 1%).
    """

    max_kl: float | None = None
    max_perplexity_increase: float | None = None


@dataclass(frozen=True)
class Quality:
    """An engine's next-token distributions against the reference's, over ``tokens`` positions.

    KL(reference || engine) is in nats; ``non_finite`` positions had a NaN or an infinity in the
    logits of either, and count as infinitely bad.
    """

    tokens: int
    reference_perplexity: float
    perplexity: float
    mean_kl: float
    kl_99: float
    """The 99th percentile."""
    top1_agreement: float
    non_finite: int

    @property
    def perplexity_increase(self) -> float:
        """By which fraction the engine's perplexity is higher; NaN where neither is a number."""
        with np.errstate(invalid="ignore"):
            return float(np.float64(self.perplexity) / self.reference_perplexity - 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and report.json; None stands for no finite number."""
        data = asdict(self) | {"perplexity_increase": self.perplexity_increase}
        return {name: value if np.isfinite(value) else None for name, value in data.items()}


def breach(quality: Quality, limits: QualityLimits) -> str | None:
    """Say in a clause which limit is breached, or None. What can't be compared is a breach."""
    if quality.tokens == 0:
        return "no token was measured"
    if quality.non_finite:
        return (
            f"logits are NaN or infinite at {quality.non_finite:,} of {quality.tokens:,} positions"
        )
    if limits.max_kl is not None and not quality.mean_kl <= limits.max_kl:
        return (
            f"the mean KL divergence from the checkpoint is {quality.mean_kl:.3g} nats "
            f"({limits.max_kl:.3g} allowed)"
        )
    most = limits.max_perplexity_increase
    if most is not None and not quality.perplexity_increase <= most:
        return (
            f"perplexity rises by {quality.perplexity_increase:.2%} from "
            f"{quality.reference_perplexity:.4g} to {quality.perplexity:.4g} ({most:.2%} allowed)"
        )
    return None


@dataclass
class QualityTally:
    """Adds up positions, so that only some positions' logits are ever in memory."""

    _kl: list[Doubles] = field(default_factory=list)
    _reference_loss: float = 0.0
    _loss: float = 0.0
    _agreed: int = 0
    _non_finite: int = 0

    def add(self, reference: Floats, engine: Floats, next_tokens: Tokens) -> None:
        """Add positions: logits [n, vocab] of both, and the token [n] that follows each position.

        Raises ValueError where the shapes differ.
        """
        if reference.shape != engine.shape or next_tokens.shape != reference.shape[:1]:
            raise ValueError(
                f"shapes differ: {reference.shape}, {engine.shape}, {next_tokens.shape}"
            )
        rows = max(1, _CHUNK // reference.shape[1])
        for start in range(0, len(reference), rows):
            part = slice(start, start + rows)
            self._add(reference[part], engine[part], next_tokens[part])

    def quality(self) -> Quality:
        """The figures of all positions so far."""
        kl = np.concatenate(self._kl) if self._kl else np.zeros(0)
        if len(kl) == 0:
            nothing = float("nan")
            return Quality(0, nothing, nothing, nothing, nothing, 0.0, 0)
        return Quality(
            tokens=len(kl),
            reference_perplexity=perplexity(self._reference_loss / len(kl)),
            perplexity=perplexity(self._loss / len(kl)),
            mean_kl=float(kl.mean()),
            # Between two positions the worse one counts, which keeps infinities what they are.
            kl_99=float(np.quantile(kl, 0.99, method="higher")),
            top1_agreement=self._agreed / len(kl),
            non_finite=self._non_finite,
        )

    def _add(self, reference: Floats, engine: Floats, next_tokens: Tokens) -> None:
        finite = _finite_rows(reference) & _finite_rows(engine)
        if not finite.all():
            count = int((~finite).sum())
            self._kl.append(np.full(count, np.inf))
            self._loss += np.inf
            self._non_finite += count
            reference, engine = reference[finite], engine[finite]
            next_tokens = next_tokens[finite]
        self._agreed += int((reference.argmax(axis=1) == engine.argmax(axis=1)).sum())
        theirs, weights, total = softmax_parts(reference)
        ours, _, our_total = softmax_parts(engine)
        rows = np.arange(len(next_tokens))
        log_total, our_log_total = np.log(total), np.log(our_total)
        self._reference_loss += float((log_total - theirs[rows, next_tokens]).sum())
        self._loss += float((our_log_total - ours[rows, next_tokens]).sum())
        # Sum of p * (log p - log q): the difference of logits loses no digits that a difference of
        # logarithms would.
        theirs -= ours
        expected = np.einsum("nv,nv->n", weights, theirs, dtype=np.float64) / total
        self._kl.append(np.maximum(expected - log_total + our_log_total, 0))


def _finite_rows(logits: Floats) -> npt.NDArray[np.bool_]:
    """Which rows have finite numbers only; a NaN is its row's minimum and maximum."""
    extremes = np.stack([logits.min(axis=1), logits.max(axis=1)])
    finite: npt.NDArray[np.bool_] = np.isfinite(extremes).all(axis=0)
    return finite
