"""One sequence and its steps: prefill, decode or verify a draft, sample."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from serving.constraints import Matcher
from serving.detokenizer import Detokenizer, StopStrings, Vocabulary
from serving.engine import Engine, FloatArray, IntArray
from serving.errors import EngineError, UserError
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

FinishReason = Literal["stop", "length"]
SpeculationMethod = Literal["prompt-lookup", "draft"]

# The first tokens of a text stay when its context slides: attention gathers there whatever they
# say, and without them a model loses its way (Xiao et al. 2024, "attention sinks").
SINKS = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """When sequences end: ``eos`` ids end one, but not before ``min_new_tokens``.

    ``stop`` strings cut the text. No sequence has more than ``capacity`` tokens, prompt included,
    unless it ``slides``: then its oldest tokens are forgotten where it would. The first token is
    ``forced_bos``, and the last that the limits allow ``forced_eos``, where there are such.
    """

    capacity: int
    max_new_tokens: int | None
    min_new_tokens: int
    eos: tuple[int, ...]
    stop: tuple[str, ...]
    slides: bool = False
    forced_bos: int | None = None
    forced_eos: int | None = None

    def forced(self, generated: int, most: int) -> int | None:
        """The only token that may come behind so many of at most ``most``, or None."""
        if generated == most - 1 and self.forced_eos is not None:
            return self.forced_eos
        return self.forced_bos if generated == 0 else None


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of prompt number ``index``.

    ``text`` is what became certain with it (maybe nothing); ``finish_reason`` is set on the last
    token, "stop" for an EOS token or a stop string and "length" for a limit. So many tokens were
    ``drafted`` for the step that begins with this one; a ``speculated`` token came of such a draft
    and needed no step. The first token says how many of the prompt's were ``reused``: copied from
    what an earlier one left.
    """

    index: int
    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: LogProbs | None = None
    drafted: int = 0
    speculated: bool = False
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of prompt number ``index`` without a last token, and why."""

    index: int
    error: UserError


Event = Token | Failure


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed next tokens ``ids`` [k], and the ``probabilities`` [k, vocab] they were drawn with.

    Without probabilities the draft is one that leaves nothing to chance.
    """

    ids: IntArray
    probabilities: Float64Array | None = None


class Sequence:
    """One prompt and what was generated from it so far.

    A ``matcher`` constrains what comes. ``adapter`` is the number of the LoRA adapter that it is
    computed with, 0 for none. An encoder-decoder's sequence has a source [n] that the encoder
    reads, and its prompt is what the output goes on from.
    """

    def __init__(
        self,
        index: int,
        prompt_ids: IntArray,
        sampling: SamplingParameters,
        limits: Limits,
        vocabulary: Vocabulary | None,
        *,
        speculation: SpeculationMethod | None = None,
        matcher: Matcher | None = None,
        adapter: int = 0,
        source_ids: IntArray | None = None,
    ) -> None:
        room = limits.capacity - len(prompt_ids)
        most = room if limits.max_new_tokens is None else limits.max_new_tokens
        self.index = index
        self.sampling = sampling
        self.limits = limits
        self.speculation = speculation
        self.matcher = matcher
        self.adapter = adapter
        self.source_ids = source_ids
        self.vocabulary = vocabulary
        self._most = most if limits.slides else min(room, most)
        self._ids = np.empty(len(prompt_ids) + self._most, np.int64)
        self._ids[: len(prompt_ids)] = prompt_ids
        self._prompt_length = self._length = len(prompt_ids)
        self.random = random_state(sampling.seed)
        self._detokenizer = (
            Detokenizer(vocabulary, vocabulary.ending(prompt_ids)) if vocabulary else None
        )
        self._stops = StopStrings(limits.stop)
        self._forgotten = 0  # so many tokens behind the sinks
        self.finished = False
        if len(prompt_ids) > limits.capacity:
            self.slide()

    @property
    def ids(self) -> IntArray:
        """The prompt and what was generated, [n]."""
        return self._ids[: self._length]

    @property
    def prompt_ids(self) -> IntArray:
        """The prompt, [prompt length]."""
        return self._ids[: self._prompt_length]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of what was given: the prompt, or an encoder-decoder's source."""
        return self._prompt_length if self.source_ids is None else len(self.source_ids)

    @property
    def generated_ids(self) -> IntArray:
        """Tokens generated so far, [n]."""
        return self._ids[self._prompt_length : self._length]

    @property
    def last_id(self) -> int:
        """The newest token: the only one that isn't in the KV cache."""
        return int(self._ids[self._length - 1])

    @property
    def context(self) -> IntArray:
        """The tokens that the next one is computed from, [n]: all, or what sliding left of them."""
        if not self._forgotten:
            return self.ids
        return np.concatenate((self._ids[:SINKS], self.ids[SINKS + self._forgotten :]))

    @property
    def cached(self) -> int:
        """Tokens in the KV cache, once it is decoding: all of the context but the newest."""
        return self._length - self._forgotten - 1

    @property
    def room(self) -> int:
        """How many more tokens the limits allow, and the KV cache as it is."""
        free = self.limits.capacity - (self._length - self._forgotten)
        return min(len(self._ids) - self._length, free)

    @property
    def is_full(self) -> bool:
        """Whether the newest token has no place in the KV cache."""
        return not self.finished and self.cached >= self.limits.capacity

    def slide(self) -> None:
        """Forget old tokens: the first few and the newest stay, together half the capacity.

        What stays must be run again, for its positions are others.
        """
        stays = max(self.limits.capacity // 2, SINKS + 1)
        self._forgotten = self._length - stays

    def extend(
        self, logits: FloatArray, drafted: int = 0, draft_probabilities: Float64Array | None = None
    ) -> Token:
        """Sample the next token from ``logits`` [vocab].

        If ``drafted`` was drawn from ``draft_probabilities`` [vocab], it is taken as often as the
        distribution of the logits allows.
        """
        top = self.sampling.logprobs
        forced = self.limits.forced(len(self.generated_ids), self._most)
        if forced is not None:
            return self.append(forced, None if top is None else log_probs(logits, forced, top))
        candidates = logits
        if len(self.generated_ids) < self.limits.min_new_tokens:
            candidates = logits.copy()
            candidates[list(self.limits.eos)] = -np.inf
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
        return self.append(token_id, None if top is None else log_probs(logits, token_id, top))

    def append(self, token_id: int, logprobs: LogProbs | None = None) -> Token:
        """Take a token that was chosen."""
        is_forced = self.limits.forced(len(self.generated_ids), self._most) is not None
        if self.matcher is not None and not is_forced:
            self.matcher.accept(token_id)
        self._ids[self._length] = token_id
        self._length += 1
        text, reason = self._advance(token_id)
        self.finished = reason is not None
        return Token(self.index, token_id, text, reason, logprobs)

    def fail(self, error: UserError) -> Failure:
        """End here, because of an error."""
        self.finished = True
        return Failure(self.index, error)

    def _advance(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Return the text that a new token makes certain, and why the sequence ends with it."""
        reason: FinishReason | None = None
        if len(self.generated_ids) == self._most:
            reason = "length"
        if token_id in self.limits.eos or (self.matcher is not None and self.matcher.is_complete):
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


def decode(engine: Engine, sequences: list[Sequence], first_slot: int = 0) -> list[Event]:
    """Run the newest token of each sequence, in the slots from the first on; one more for each."""
    input_ids = np.array([[seq.last_id] for seq in sequences])
    past_lengths = np.array([seq.cached for seq in sequences])
    logits = engine.step(input_ids, past_lengths, np.zeros_like(input_ids), first_slot)[:, 0]
    return [extend(seq, row) for seq, row in zip(sequences, logits, strict=True)]


def extend(
    sequence: Sequence,
    logits: FloatArray,
    drafted: int = 0,
    draft_probabilities: Float64Array | None = None,
) -> Event:
    """Sample a sequence's next token, see Sequence.extend; what goes wrong ends this one alone.

    Raises EngineError, after which no sequence can go on.
    """
    try:
        return sequence.extend(logits, drafted, draft_probabilities)
    except EngineError:
        raise
    except UserError as error:
        return sequence.fail(error)


def verify(engine: Engine, sequence: Sequence, slot: int, draft: Draft) -> list[Event]:
    """Run the newest token and a draft in one step; returns what holds, and one token more.

    Every position is sampled as ``decode`` would, until the sampled token isn't the drafted one:
    a draft without probabilities therefore changes neither tokens nor random numbers. What was
    written after that lies beyond the sequence's cached length, and the next step overwrites it.
    """
    input_ids = np.concatenate(([sequence.last_id], draft.ids))[None]
    positions = np.arange(input_ids.shape[1])[None]
    logits = engine.step(input_ids, np.array([sequence.cached]), positions, slot)[0]
    events: list[Event] = []
    for position, drafted in enumerate(draft.ids.tolist()):
        row = None if draft.probabilities is None else draft.probabilities[position]
        events.append(extend(sequence, logits[position], drafted, row))
        if sequence.finished or sequence.last_id != drafted:
            break
    else:
        events.append(extend(sequence, logits[-1]))
    return [_marked(event, len(draft.ids), at) for at, event in enumerate(events)]


def _marked(event: Event, drafted: int, at: int) -> Event:
    """Say of a token that it began a step with a draft, or came of the draft."""
    if isinstance(event, Failure):
        return event
    return replace(event, speculated=True) if at else replace(event, drafted=drafted)


class Decoder(Protocol):
    """A way of giving running sequences their next tokens."""

    def advance(self, engine: Engine, active: list[Sequence]) -> list[Event]:
        """Add a token or more to each active sequence, or end it; they hold the first slots."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Free what a sequence held that won't go on, or not from where it was."""
        ...
