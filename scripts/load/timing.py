"""When the tokens of requests came, and what that says. Needs the standard library alone."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class Timeline:
    """One request: when it was sent, and when tokens of it came (seconds of one clock).

    A server may send several of its ``tokens`` at a time: those that only together are text.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first_token_seconds(self) -> float:
        """From sending the request to its first token."""
        return self.times[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def as_json(self) -> dict[str, object]:
        """Return what ``Timeline(**...)`` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Figures:
    """What a load came to, in seconds and tokens a second."""

    tokens_per_second: float
    first_token_median: float
    first_token_99th: float
    gap_median: float
    gap_99th: float
    gap_longest: float


def figures(rounds: Sequence[Sequence[Timeline]]) -> Figures:
    """Summarise rounds of the same load: the median of their rates, latencies of all requests."""
    timelines = [timeline for timelines in rounds for timeline in timelines]
    first = [timeline.first_token_seconds for timeline in timelines]
    gaps = [gap for timeline in timelines for gap in timeline.gaps]
    return Figures(
        statistics.median(rate(timelines) for timelines in rounds),
        statistics.median(first),
        percentile(first, 0.99),
        statistics.median(gaps),
        percentile(gaps, 0.99),
        max(gaps),
    )


@dataclass(frozen=True)
class Beside:
    """A contestant beside another one that served the same loads in the same rounds.

    Medians over the rounds: of the quotient of rates, and of the seconds that the median first
    token came later.
    """

    rate_ratio: float
    first_token_delay: float


def beside(rounds: Sequence[Sequence[Timeline]], others: Sequence[Sequence[Timeline]]) -> Beside:
    """Compare round by round: what slowed the machine down for one slowed down both."""
    pairs = list(zip(rounds, others, strict=True))
    return Beside(
        statistics.median(rate(own) / rate(other) for own, other in pairs),
        statistics.median(_first_token(own) - _first_token(other) for own, other in pairs),
    )


def _first_token(timelines: Sequence[Timeline]) -> float:
    return statistics.median(timeline.first_token_seconds for timeline in timelines)


def rate(timelines: Sequence[Timeline]) -> float:
    """All new tokens over the time from the first request to the last token."""
    begin = min(timeline.sent for timeline in timelines)
    end = max(timeline.times[-1] for timeline in timelines)
    return sum(timeline.tokens for timeline in timelines) / (end - begin)


def percentile(values: Iterable[float], part: float) -> float:
    """The smallest value that ``part`` of all don't exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]
