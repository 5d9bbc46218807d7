"""The generation loop: prefill, decode, sample."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.detokenizer import Detokenizer, StopStrings, Vocabulary
from serving.engine import Engine, FloatArray, IntArray
from serving.sampling import LogProbs, SamplingParameters, log_probs, random_state, sample

FinishReason = Literal["stop", "length"]


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
    token, "stop" for an EOS token or a stop string and "length" for a limit.
    """

    index: int
    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: LogProbs | None = None


class Sequence:
    """One prompt and what was generated from it so far."""

    def __init__(
        self,
        index: int,
        prompt_ids: IntArray,
        sampling: SamplingParameters,
        limits: Limits,
        vocabulary: Vocabulary | None,
    ) -> None:
        room = limits.capacity - len(prompt_ids)
        self._index = index
        self._sampling = sampling
        self._limits = limits
        self._most = room if limits.max_new_tokens is None else min(room, limits.max_new_tokens)
        self._ids = np.empty(len(prompt_ids) + self._most, np.int64)
        self._ids[: len(prompt_ids)] = prompt_ids
        self._prompt_length = self._length = len(prompt_ids)
        self._random = random_state(sampling.seed)
        self._detokenizer = Detokenizer(vocabulary) if vocabulary else None
        self._stops = StopStrings(limits.stop)
        self.finished = False

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

    def extend(self, logits: FloatArray) -> Token:
        """Sample the next token from ``logits`` [vocab]."""
        candidates = logits
        if len(self.generated_ids) < self._limits.min_new_tokens:
            candidates = logits.copy()
            candidates[list(self._limits.eos)] = -np.inf
        token_id = sample(
            candidates, self._sampling, self.prompt_ids, self.generated_ids, self._random
        )
        self._ids[self._length] = token_id
        self._length += 1
        text, reason = self._advance(token_id)
        self.finished = reason is not None
        top = self._sampling.logprobs
        logprobs = None if top is None else log_probs(logits, token_id, top)
        return Token(self._index, token_id, text, reason, logprobs)

    def _advance(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Return the text that a new token makes certain, and why the sequence ends with it."""
        reason: FinishReason | None = None
        if len(self.generated_ids) == self._most:
            reason = "length"
        if token_id in self._limits.eos:
            reason = "stop"
        if self._detokenizer is None:
            return "", reason
        text = self._stops.push(self._detokenizer.push(token_id))
        if reason and not self._stops.found:
            text += self._stops.push(self._detokenizer.finish())
        if self._stops.found:
            return text, "stop"
        return text + (self._stops.finish() if reason else ""), reason


def generate(engine: Engine, sequences: Iterable[Sequence], chunk: int) -> Iterator[Token]:
    """Generate from all sequences, as many at a time as the engine has slots.

    Active sequences hold the first slots; the others wait until one frees.
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
            logits = decode(engine, active)
            tokens = [seq.extend(row) for seq, row in zip(active, logits, strict=True)]
            release_finished(engine, active)
            yield from tokens


def prefill(engine: Engine, prompt_ids: IntArray, slot: int, chunk: int) -> FloatArray:
    """Run a prompt through one slot, ``chunk`` tokens at once; returns the last logits [vocab]."""
    for start in range(0, len(prompt_ids), chunk):
        ids = prompt_ids[None, start : start + chunk]
        last = np.array([[ids.shape[1] - 1]])
        logits: FloatArray = engine.step(ids, np.array([start]), last, slot)[0, 0]
    return logits


def decode(engine: Engine, active: list[Sequence]) -> FloatArray:
    """Run the newest token of each active sequence; returns logits [n, vocab]."""
    input_ids = np.array([[seq.last_id] for seq in active])
    past_lengths = np.array([seq.cached for seq in active])
    logits: FloatArray = engine.step(input_ids, past_lengths, np.zeros_like(input_ids))[:, 0]
    return logits


def release_finished(engine: Engine, active: list[Sequence]) -> None:
    """Drop finished sequences; the last active slot moves into each gap."""
    for slot in reversed(range(len(active))):
        if active[slot].finished:
            last = active.pop()
            if slot < len(active):
                engine.cache.move(len(active), slot, last.cached)
                active[slot] = last
