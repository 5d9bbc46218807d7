"""How many tokens to draft: as many as give the most tokens a second."""

from dataclasses import dataclass, field

import numpy as np

# With the newest token they make steps of 2, 4, 8, 16 and 32 tokens.
DRAFT_LENGTHS = (1, 3, 7, 15, 31)

# Less expected gain than this is not worth the risk of a wrong estimate.
LEAST_GAIN = 1.1

# Estimates follow what happens: the last so many tokens or steps weigh most.
MEMORY_TOKENS = 10
MEMORY_STEPS = 4


@dataclass(slots=True)
class StepCosts:
    """Seconds of an engine step by its number of tokens, learned from the steps that it ran."""

    _seconds: dict[int, float] = field(default_factory=dict)

    def record(self, tokens: int, seconds: float) -> None:
        """Learn from a step; one that was interrupted counts at most double."""
        known = self._seconds.get(tokens)
        if known is None:
            # Tokens never cost more together than one by one.
            self._seconds[tokens] = min(seconds, tokens * self._seconds.get(1, seconds))
        else:
            self._seconds[tokens] += (min(seconds, 2 * known) - known) / MEMORY_STEPS

    def known(self, tokens: int) -> bool:
        """Whether such a step was run."""
        return tokens in self._seconds

    def seconds(self, tokens: int) -> float:
        """Cost of a step, between those of the known numbers of tokens next to it.

        Beyond the known ones it is the nearest one's; for no tokens, and as long as nothing is
        known, it is 0.
        """
        if tokens == 0 or not self._seconds:
            return 0.0
        if tokens in self._seconds:
            return self._seconds[tokens]
        widths = sorted(self._seconds)
        return float(np.interp(tokens, widths, [self._seconds[width] for width in widths]))


@dataclass(slots=True)
class Acceptance:
    """How often drafted tokens turn out right, from counts that fade; starts with some of each."""

    _right: float
    _wrong: float

    def record(self, accepted: int, tested: int) -> None:
        """Learn that of ``tested`` tokens the first ``accepted`` were right."""
        kept = (1 - 1 / MEMORY_TOKENS) ** tested
        self._right = self._right * kept + accepted
        self._wrong = self._wrong * kept + tested - accepted

    @property
    def rate(self) -> float:
        """Probability that a drafted token is right if those before it are."""
        return self._right / (self._right + self._wrong)

    def expected_tokens(self, length: int) -> float:
        """Tokens that a step with a draft of so many gives (Leviathan et al. 2023, equation 1)."""
        # The sum 1 + rate + rate^2 + ... + rate^length.
        rate = self.rate
        return length + 1 if rate == 1 else float((1 - rate ** (length + 1)) / (1 - rate))


def best_length(
    costs: StepCosts, acceptance: Acceptance, others: int, most: int, draft_seconds: float
) -> int:
    """Return the draft length from 0 to ``most`` that gives the most tokens a second.

    A draft is verified in a step of its own, while ``others`` sequences decode one token each in
    another step; without a draft all share that one. ``draft_seconds`` is what drafting one token
    takes. Without knowing what a step of all costs, the length is 0; of the lengths whose steps
    were never run the shortest alone is considered, and taken to cost as much as the one before.
    """
    if not costs.known(others + 1):
        return 0
    without = (others + 1) / costs.seconds(others + 1)
    best, best_rate = 0, LEAST_GAIN * without
    for length in DRAFT_LENGTHS:
        if length > most:
            break
        seconds = costs.seconds(others) + costs.seconds(length + 1) + length * draft_seconds
        rate = (others + acceptance.expected_tokens(length)) / seconds
        if rate > best_rate:
            best, best_rate = length, rate
        if not costs.known(length + 1):
            break
    return best
