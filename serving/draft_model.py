"""Drafting with a smaller model that has the same tokens."""

from contextlib import suppress
from dataclasses import replace

import numpy as np

from serving.constraints import ConstraintError, Matcher
from serving.decoding import Draft, Sequence, prefill
from serving.draft_length import DRAFT_LENGTHS
from serving.engine import Engine, FloatArray, IntArray
from serving.sampling import distribution, draw


class DraftModel:
    """The smaller model's engine for one generation; ``vocab_size`` is that of the larger model."""

    def __init__(self, engine: Engine, vocab_size: int, chunk: int) -> None:
        self.engine = engine
        self.vocab_size = vocab_size
        self.chunk = chunk
        self.free_slots = list(range(engine.cache.slots))

    def open(self, sequence: Sequence) -> "DraftSlot":
        """Take a slot for a sequence."""
        return DraftSlot(self, sequence)


class DraftSlot:
    """One sequence in the draft model's KV cache, rolled back by lowering its past length."""

    is_free = False

    def __init__(self, model: DraftModel, sequence: Sequence) -> None:
        self._model = model
        self._sequence = sequence
        self._slot = model.free_slots.pop()
        # The cache holds the sequence's first ``_length`` tokens, then ``_drafted``.
        self._length = 0
        self._drafted = np.empty(0, np.int64)

    def match(self) -> int:
        """Return 1, or 0 where the draft model can't follow: too long a text or too high an id."""
        engine, ids = self._model.engine, self._sequence.ids
        fits = len(ids) + DRAFT_LENGTHS[-1] <= engine.cache.capacity
        return int(fits and ids[self._length :].max() < engine.vocab_size)

    def propose(self, length: int) -> Draft:
        """Generate ``length`` tokens.

        They are drawn as the sequence draws its own, but the likeliest ones where temperature 0 or
        a seed asks for tokens that don't depend on the length of drafts. They follow the sequence's
        constraint as far as the draft model has tokens for it; verifying refuses the others, and
        bad words.
        """
        sequence = self._sequence
        # Bad words could leave nothing of the few tokens of a constraint that a draft model has.
        sampling = replace(sequence.sampling, bad_words=None)
        is_drawn = sampling.temperature > 0 and sampling.seed is None
        logits = self._catch_up(sequence.ids)
        vocab = min(len(logits), self._model.vocab_size)
        drafted = np.empty(length, np.int64)
        probabilities = np.zeros((length, self._model.vocab_size)) if is_drawn else None
        matcher = sequence.matcher.fork() if sequence.matcher is not None else None
        for i in range(length):
            if i:
                logits = self._run(drafted[i - 1 : i], self._length + i - 1)
            scores = _finite(logits[:vocab])
            if matcher is not None:
                scores = _masked(scores, matcher)
            if probabilities is None:
                drafted[i] = scores.argmax()
            else:
                generated = np.concatenate((sequence.generated_ids, drafted[:i]))
                probabilities[i, :vocab] = distribution(
                    scores, sampling, sequence.prompt_ids, generated
                )
                drafted[i] = draw(probabilities[i], sequence.random)
            if matcher is not None:
                with suppress(ConstraintError):
                    matcher.accept(int(drafted[i]))
        self._drafted = drafted[:-1]  # the last one wasn't run
        return Draft(drafted, probabilities)

    def close(self) -> None:
        """Give the slot back."""
        self._model.free_slots.append(self._slot)

    def _catch_up(self, ids: IntArray) -> FloatArray:
        """Run what isn't in the cache yet of the sequence's ``ids``; returns logits [vocab]."""
        new = ids[self._length : -1]
        checked = min(len(new), len(self._drafted))
        differs = np.flatnonzero(new[:checked] != self._drafted[:checked])
        past_length = self._length + (int(differs[0]) if len(differs) else checked)
        self._length, self._drafted = len(ids), self._drafted[:0]
        return self._run(ids[past_length:], past_length)

    def _run(self, ids: IntArray, past_length: int) -> FloatArray:
        return prefill(self._model.engine, ids, self._slot, self._model.chunk, past_length)


def _finite(scores: FloatArray) -> FloatArray:
    """Zeros in place of a broken model's scores: any guess will do, as it is verified."""
    return scores if np.isfinite(scores.max()) else np.zeros_like(scores)


def _masked(scores: FloatArray, matcher: Matcher) -> FloatArray:
    try:
        return matcher.mask(scores)
    except ConstraintError:
        return scores
