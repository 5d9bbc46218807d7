"""Speculative decoding: several drafted tokens verified in one engine step, where that pays."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter
from typing import Protocol

from serving.decoding import Draft, Event, Sequence, Token, decode, verify
from serving.draft_length import DRAFT_LENGTHS, Acceptance, StepCosts, best_length
from serving.engine import Engine

# The part of the time that may be lost to finding out whether drafts would pay by now.
PROBING = 0.02


class Drafter(Protocol):
    """Guesses how one sequence goes on; ``is_free`` if that takes next to no time."""

    is_free: bool

    def match(self) -> int:
        """Return 0 if there is nothing to guess by, else which kind of guess this would be.

        How often guesses are right is counted for each kind.
        """
        ...

    def propose(self, length: int) -> Draft:
        """Guess the next ``length`` tokens, after a ``match``."""
        ...

    def close(self) -> None:
        """Free what the sequence held."""
        ...


@dataclass(slots=True)
class Speculator:
    """One sequence's drafter, and how often each kind of its guesses was right."""

    drafter: Drafter
    acceptance: dict[int, Acceptance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guess:
    """A draft of one kind; ``is_run`` unless it is made only to see whether it is right."""

    draft: Draft
    acceptance: Acceptance
    is_run: bool

    def learn(self, events: list[Event]) -> None:
        """Compare with the tokens that came."""
        tokens = [event for event in events if isinstance(event, Token)]
        pairs = list(zip(self.draft.ids.tolist(), tokens, strict=False))
        right = [guessed == token.token_id for guessed, token in pairs]
        accepted = right.index(False) if False in right else len(right)
        self.acceptance.record(accepted, min(accepted + 1, len(right)))


class Speculation:
    """Speculative decoding of sequences, but for those that no drafter is opened for.

    Draft lengths follow from the measured costs of steps and the measured acceptance. Guesses that
    are free are made all the time, so that their acceptance is known before a draft is run. Others
    that don't pay are tried again when decoding has made up for the last try.
    """

    def __init__(
        self, open_drafter: Callable[[Sequence], Drafter | None], costs: StepCosts
    ) -> None:
        self._open_drafter = open_drafter
        self._costs = costs
        self._speculators: dict[Sequence, Speculator | None] = {}
        self._draft_costs = StepCosts()
        self._lost_seconds = 0.0

    def advance(self, engine: Engine, active: list[Sequence]) -> list[Event]:
        """Add a token or more to each sequence: drafts run slot by slot, the others together."""
        guesses = [self._guess(sequence, len(active) - 1) for sequence in active]
        runs = [guess is not None and guess.is_run for guess in guesses]
        events: list[list[Event]] = []
        for is_run, group in groupby(range(len(active)), runs.__getitem__):
            slots = list(group)
            if is_run:
                events += [self._verify(engine, active[i], i, guesses[i]) for i in slots]
            else:
                events += self._decode(engine, [active[i] for i in slots], slots[0])
        for sequence, guess, new in zip(active, guesses, events, strict=True):
            if guess is not None:
                guess.learn(new)
            if sequence.finished:
                self.forget(sequence)
        new_events = [event for new in events for event in new]
        run_lengths = [len(g.draft.ids) for g in guesses if g is not None and g.is_run]
        self._account(len(active), run_lengths, len(new_events))
        return new_events

    def forget(self, sequence: Sequence) -> None:
        """Free what a sequence held that won't go on."""
        speculator = self._speculators.pop(sequence, None)
        if speculator is not None:
            speculator.drafter.close()

    def _speculator(self, sequence: Sequence) -> Speculator | None:
        if sequence not in self._speculators:
            drafter = self._open_drafter(sequence)
            self._speculators[sequence] = Speculator(drafter) if drafter else None
        return self._speculators[sequence]

    def _guess(self, sequence: Sequence, others: int) -> Guess | None:
        speculator = self._speculator(sequence)
        if speculator is None:
            return None
        drafter, most = speculator.drafter, sequence.room - 1
        kind = drafter.match() if most > 0 else 0
        if kind == 0:
            return None
        if kind not in speculator.acceptance:
            # What is free is judged before it is run; of the rest the first drafts are run at once.
            start = Acceptance(0.0, 2.0) if drafter.is_free else Acceptance(1.0, 1.0)
            speculator.acceptance[kind] = start
        acceptance = speculator.acceptance[kind]
        draft_seconds = self._draft_costs.seconds(1)
        length = best_length(self._costs, acceptance, others, most, draft_seconds)
        may_probe = (
            not drafter.is_free and self._lost_seconds <= 0 and self._costs.known(others + 1)
        )
        if length == 0 and may_probe:
            length = DRAFT_LENGTHS[0]
        if length == 0 and not drafter.is_free:
            return None
        begin = perf_counter()
        draft = drafter.propose(max(length, 1))
        self._draft_costs.record(1, (perf_counter() - begin) / len(draft.ids))
        return Guess(draft, acceptance, length > 0)

    def _verify(
        self, engine: Engine, sequence: Sequence, slot: int, guess: Guess | None
    ) -> list[Event]:
        assert guess is not None
        begin = perf_counter()
        events = verify(engine, sequence, slot, guess.draft)
        self._costs.record(len(guess.draft.ids) + 1, perf_counter() - begin)
        return events

    def _decode(
        self, engine: Engine, sequences: list[Sequence], first_slot: int
    ) -> list[list[Event]]:
        begin = perf_counter()
        events = decode(engine, sequences, first_slot)
        self._costs.record(len(sequences), perf_counter() - begin)
        return [[event] for event in events]

    def _account(self, sequences: int, run_lengths: list[int], tokens: int) -> None:
        """Count the time lost to drafts, and pay it back with a part of the other steps' time."""
        together = self._costs.seconds(sequences)
        if not run_lengths:
            self._lost_seconds = max(0.0, self._lost_seconds - PROBING * together)
            return
        seconds = self._costs.seconds(sequences - len(run_lengths))
        for length in run_lengths:
            seconds += self._costs.seconds(length + 1) + length * self._draft_costs.seconds(1)
        self._lost_seconds = max(0.0, self._lost_seconds + seconds - tokens * together / sequences)
