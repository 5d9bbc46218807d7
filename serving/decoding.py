"""The generation loop: prefill, decode or verify a draft, sample."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from serving.constraints import ConstraintError, Matcher
from serving.detokenizer import Detokenizer, StopStrings, Vocabulary
from serving.engine import Engine, FloatArray, IntArray
from serving.errors import UserError
from serving.sampling import (
    Float64Array,
    LogProbs,
    SamplingParameters,
    distribution,
    log_probs,
    random_state,
    sample,
    sample_after_draft,
)

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When sequences end: ``eos`` ids end one, but not before ``min_new_tokens``.

    ``stop`` strings cut the text. No sequence has more than ``capacity`` tokens, prompt included.
    """

    capacity: int
    max_new_tokens: int | None
    min_new_tokens: int
    eos: tuple[int, ...]
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of prompt number ``index``.

    ``text`` is what became certain with it (maybe nothing); ``finish_reason`` is set on the last
    token, "stop" for an EOS token, a stop string or the end of a constraint, and "length" for a
    limit. So many tokens were ``drafted`` for the step that begins with this one; a ``speculated``
    token came of such a draft and needed no step. With "error" there is no token (the id is -1): an
    ``error`` ended this sequence alone.
    """

    index: int
    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: LogProbs | None = None
    drafted: int = 0
    speculated: bool = False
    error: UserError | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed next tokens ``ids`` [k], and the ``probabilities`` [k, vocab] they were drawn with.

    Without probabilities the draft is one that leaves nothing to chance.
    """

    ids: IntArray
    probabilities: Float64Array | None = None


class Sequence:
    """One prompt and what was generated from it so far; a ``matcher`` constrains what comes."""

    def __init__(
        self,
        index: int,
        prompt_ids: IntArray,
        sampling: SamplingParameters,
        limits: Limits,
        vocabulary: Vocabulary | None,
        matcher: Matcher | None = None,
    ) -> None:
        room = limits.capacity - len(prompt_ids)
        self._index = index
        self.sampling = sampling
        self.matcher = matcher
        self._limits = limits
        self._most = room if limits.max_new_tokens is None else min(room, limits.max_new_tokens)
        self._ids = np.empty(len(prompt_ids) + self._most, np.int64)
        self._ids[: len(prompt_ids)] = prompt_ids
        self._prompt_length = self._length = len(prompt_ids)
        self.random = random_state(sampling.seed)
        self._detokenizer = Detokenizer(vocabulary) if vocabulary else None
        self._stops = StopStrings(limits.stop)
        self.finished = False

    @property
    def ids(self) -> IntArray:
        """The prompt and what was generated, [n]."""
        return self._ids[: self._length]

    @property
    def prompt_ids(self) -> IntArray:
        """The prompt, [prompt length]."""
        return self._ids[: self._prompt_length]

    @property
    def generated_ids(self) -> IntArray:
        """Tokens generated so far, [n]."""
        return self._ids[self._prompt_length : self._length]

    @property
    def last_id(self) -> int:
        """The newest token: the only one that isn't in the KV cache."""
        return int(self._ids[self._length - 1])

    @property
    def cached(self) -> int:
        """Tokens in the KV cache."""
        return self._length - 1

    @property
    def room(self) -> int:
        """How many more tokens the limits allow."""
        return len(self._ids) - self._length

    def extend(
        self, logits: FloatArray, drafted: int = 0, draft_probabilities: Float64Array | None = None
    ) -> Token:
        """Sample the next token from ``logits`` [vocab].

        If ``drafted`` was drawn from ``draft_probabilities`` [vocab], it is taken as often as the
        distribution of the logits allows. What the constraint fails on is returned as the
        sequence's last Token.
        """
        try:
            return self._sample(logits, drafted, draft_probabilities)
        except ConstraintError as error:
            self.finished = True
            return Token(self._index, -1, "", "error", error=error)

    def _sample(
        self, logits: FloatArray, drafted: int, draft_probabilities: Float64Array | None
    ) -> Token:
        candidates = logits
        if len(self.generated_ids) < self._limits.min_new_tokens:
            candidates = logits.copy()
            candidates[list(self._limits.eos)] = -np.inf
        if self.matcher is not None:
            # Before bias, penalties and temperature: -inf stays -inf under all of them, and top-k,
            # top-p and min-p then choose among what is allowed.
            candidates = self.matcher.mask(candidates)
        conditions = (candidates, self.sampling, self.prompt_ids, self.generated_ids)
        if draft_probabilities is None:
            token_id = sample(*conditions, self.random)
        else:
            target = distribution(*conditions)
            token_id = sample_after_draft(target, draft_probabilities, drafted, self.random)
        top = self.sampling.logprobs
        return self.append(token_id, None if top is None else log_probs(logits, token_id, top))

    def append(self, token_id: int, logprobs: LogProbs | None = None) -> Token:
        """Take a token that was chosen; raises ConstraintError if the constraint forbids it."""
        if self.matcher is not None:
            self.matcher.accept(token_id)
        self._ids[self._length] = token_id
        self._length += 1
        text, reason = self._advance(token_id)
        self.finished = reason is not None
        return Token(self._index, token_id, text, reason, logprobs)

    def _advance(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Return the text that a new token makes certain, and why the sequence ends with it."""
        reason: FinishReason | None = None
        if len(self.generated_ids) == self._most:
            reason = "length"
        if token_id in self._limits.eos or (self.matcher is not None and self.matcher.is_complete):
            reason = "stop"
        if self._detokenizer is None:
            return "", reason
        text = self._stops.push(self._detokenizer.push(token_id))
        if reason and not self._stops.found:
            text += self._stops.push(self._detokenizer.finish())
        if self._stops.found:
            return text, "stop"
        return text + (self._stops.finish() if reason else ""), reason


def prefill(
    engine: Engine, ids: IntArray, slot: int, chunk: int, past_length: int = 0
) -> FloatArray:
    """Run ``ids`` [n] after ``past_length`` others through one slot, ``chunk`` tokens at once.

    Returns the last token's logits [vocab].
    """
    for start in range(0, len(ids), chunk):
        new = ids[None, start : start + chunk]
        last = np.array([[new.shape[1] - 1]])
        logits: FloatArray = engine.step(new, np.array([past_length + start]), last, slot)[0, 0]
    return logits


def decode(engine: Engine, sequences: list[Sequence], first_slot: int = 0) -> list[Token]:
    """Run the newest token of each sequence, in the slots from the first on; one more for each."""
    input_ids = np.array([[seq.last_id] for seq in sequences])
    past_lengths = np.array([seq.cached for seq in sequences])
    logits = engine.step(input_ids, past_lengths, np.zeros_like(input_ids), first_slot)[:, 0]
    return [seq.extend(row) for seq, row in zip(sequences, logits, strict=True)]


def verify(engine: Engine, sequence: Sequence, slot: int, draft: Draft) -> list[Token]:
    """Run the newest token and a draft in one step; returns what holds, and one token more.

    Every position is sampled as ``decode`` would, until the sampled token isn't the drafted one:
    a draft without probabilities therefore changes neither tokens nor random numbers. What was
    written after that lies beyond the sequence's cached length, and the next step overwrites it.
    """
    input_ids = np.concatenate(([sequence.last_id], draft.ids))[None]
    positions = np.arange(input_ids.shape[1])[None]
    logits = engine.step(input_ids, np.array([sequence.cached]), positions, slot)[0]
    tokens: list[Token] = []
    for position, drafted in enumerate(draft.ids.tolist()):
        row = None if draft.probabilities is None else draft.probabilities[position]
        tokens.append(sequence.extend(logits[position], drafted, row))
        if sequence.finished or tokens[-1].token_id != drafted:
            break
    else:
        tokens.append(sequence.extend(logits[-1]))
    speculated = [replace(token, speculated=True) for token in tokens[1:]]
    return [replace(tokens[0], drafted=len(draft.ids)), *speculated]


Advance = Callable[[Engine, list[Sequence]], list[Token]]


def generate(
    engine: Engine, sequences: Iterable[Sequence], chunk: int, advance: Advance = decode
) -> Iterator[Token]:
    """Generate from all sequences, as many at a time as the engine has slots.

    Active sequences hold the first slots; the others wait until one frees. ``advance`` adds at
    least one token to each active sequence.
    """
    waiting = deque(sequences)
    active: list[Sequence] = []
    while waiting or active:
        while waiting and len(active) < engine.cache.slots:
            active.append(waiting.popleft())
            logits = prefill(engine, active[-1].prompt_ids, len(active) - 1, chunk)
            yield active[-1].extend(logits)
            release_finished(engine, active)
        if active:
            tokens = advance(engine, active)
            release_finished(engine, active)
            yield from tokens


def release_finished(engine: Engine, active: list[Sequence]) -> None:
    """Drop finished sequences; the last active slot moves into each gap."""
    for slot in reversed(range(len(active))):
        if active[slot].finished:
            last = active.pop()
            if slot < len(active):
                engine.cache.move(len(active), slot, last.cached)
                active[slot] = last
