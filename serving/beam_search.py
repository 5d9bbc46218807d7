"""Beam search: the likeliest continuations of one prompt, side by side in neighbouring slots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, cast

import numpy as np

from serving import decoding
from serving.decoding import Failure, FinishReason
from serving.engine import Engine, FloatArray, IntArray
from serving.errors import EngineError, UserError
from serving.result import Generation
from serving.sampling import likeliest, log_softmax, no_number, no_token, penalize

EarlyStopping = Literal[False, True, "never"]

MOST_LENGTH_PENALTY = 10


@dataclass(frozen=True, slots=True)
class BeamParameters:
    """How a search goes, as in transformers; raises UserError for a value out of its range.

    ``num_beams`` 1 is no search. A sequence's score is the sum of its log-probabilities divided by
    its number of generated tokens to the power of ``length_penalty``. With ``num_beams`` finished
    sequences a search ends at once if ``early_stopping`` is True; if it is False, when the best
    beam's score so far is no better than the worst of theirs; and if it is "never", when the best
    beam could not become better at any length.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int | None = None

    def __post_init__(self) -> None:
        beams, penalty, most = self.num_beams, self.length_penalty, MOST_LENGTH_PENALTY
        early, returned = self.early_stopping, self.num_return_sequences
        _require("num_beams", beams, _is_within(beams, Integral, 1), "a whole number of at least 1")
        if beams == 1 and (penalty != 1 or early or returned is not None):
            raise UserError(
                "length_penalty, early_stopping and num_return_sequences belong to beam search: "
                "set num_beams above 1, or leave them out."
            )
        is_in_range = _is_within(penalty, Real, -most, most)
        _require("length_penalty", penalty, is_in_range, f"a number from -{most} to {most}")
        is_known = isinstance(early, bool) or early == "never"
        _require("early_stopping", early, is_known, "False, True or 'never'")
        is_possible = returned is None or _is_within(returned, Integral, 1, beams)
        rule = f"a whole number from 1 to num_beams, which is {beams}"
        _require("num_return_sequences", returned, is_possible, rule)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence: generated tokens, with the EOS token if there was one, and its score."""

    token_ids: list[int]
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Found:
    """The best sequences that a search from prompt number ``index`` found, best first."""

    index: int
    generations: list[Generation]


class BeamSearch:
    """The search from a sequence's prompt, in ``num_beams`` slots from ``first_slot`` on.

    The prompt was run in the first of them, and ``begin`` takes its logits. After that each
    ``advance`` is one engine step over the slots, so a scheduler can run others' steps in between.
    Results are those of transformers 5.23 (``GenerationMixin._beam_search`` without
    sampling): what a step looks at is log-probabilities after penalties; of the best ``num_beams``
    continuations those that end become hypotheses, and the best that don't end are the next beams.
    There are fewer beams only where fewer continuations are possible at all.

    Beam i is in slot ``first_slot + i``. The beams' order is that of their slots, not of scores.
    """

    def __init__(
        self,
        engine: Engine,
        sequence: decoding.Sequence,
        beams: BeamParameters,
        first_slot: int = 0,
    ) -> None:
        self._engine = engine
        self._sequence = sequence
        self._beams = beams
        self._prompt_ids = sequence.prompt_ids
        self._limits = sequence.limits
        self._first_slot = first_slot
        self._most = sequence.room
        self._generated: IntArray = np.empty((1, 0), np.int64)  # [beams, tokens so far]
        self._scores: FloatArray = np.zeros(1, np.float32)  # sums of log-probabilities [beams]
        self._hypotheses: list[Hypothesis] = []  # the best num_beams so far, best first

    @property
    def num_beams(self) -> int:
        """How many slots it has."""
        return self._beams.num_beams

    @property
    def finished(self) -> bool:
        """Whether the hypotheses are final."""
        if not len(self._scores):
            return True
        if len(self._hypotheses) < self._beams.num_beams:
            return False
        if self._beams.early_stopping is True:
            return True
        grows = self._beams.early_stopping == "never" and self._beams.length_penalty > 0
        length = self._most if grows else self._generated.shape[1]
        return self._final_score(self._scores.max(), length) <= self._hypotheses[-1].score

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The best ``num_return_sequences`` (None: one) finished sequences, best first."""
        return self._hypotheses[: self._beams.num_return_sequences or 1]

    def begin(self, logits: FloatArray) -> Found | Failure | None:
        """Choose the first beams, from the logits [vocab] of the prompt's last token.

        Returns the end, if this is it: a failure if the engine gave NaN, or no token is allowed.
        """
        return self._extend(logits[None])

    def advance(self) -> Found | Failure | None:
        """Run the newest token of every beam in one engine step; returns what ``begin`` does.

        Raises EngineError, after which no search can go on.
        """
        return self._extend(self._decode())

    def _extend(self, logits: FloatArray) -> Found | Failure | None:
        try:
            self._select(logits)
        except EngineError:
            raise
        except UserError as error:
            return self._sequence.fail(error)
        return self._found() if self.finished else None

    def _found(self) -> Found:
        vocabulary, prompt_tokens = self._sequence.vocabulary, self._sequence.prompt_tokens
        after = vocabulary.ending(self._prompt_ids) if vocabulary else ()
        generations = [
            Generation(
                token_ids=hypothesis.token_ids,
                text=vocabulary.decode(hypothesis.token_ids, after) if vocabulary else "",
                finish_reason=hypothesis.finish_reason,
                prompt_tokens=prompt_tokens,
                score=hypothesis.score,
            )
            for hypothesis in self.hypotheses
        ]
        return Found(self._sequence.index, generations)

    def _decode(self) -> FloatArray:
        """Run the newest token of each beam; returns logits [beams, vocab]."""
        newest = np.ascontiguousarray(self._generated[:, -1:])
        past_lengths = np.full(len(newest), self._cached - 1)
        positions = np.zeros_like(newest)
        return self._engine.step(newest, past_lengths, positions, self._first_slot)[:, 0]

    @property
    def _cached(self) -> int:
        """Tokens of a beam, which are all in its slot once they have run."""
        return len(self._prompt_ids) + int(self._generated.shape[1])

    def _select(self, logits: FloatArray) -> None:
        """Choose hypotheses and the next beams from ``logits`` [beams, vocab]."""
        totals = (self._log_probs(logits) + self._scores[:, None]).ravel()
        if np.isnan(totals.max()):
            raise no_number()
        # Of so many, at least num_beams don't end: each beam can end in as many ways as EOS ids.
        count = self._beams.num_beams * (1 + len(self._limits.eos))
        best = likeliest(totals, min(count, len(totals)))
        best = best[totals[best] > -np.inf]
        parents, token_ids = np.divmod(best, self._engine.vocab_size)
        length = self._generated.shape[1] + 1
        stops = np.isin(token_ids, self._limits.eos)
        ends = stops | (length == self._most)
        for i in np.flatnonzero(ends[: self._beams.num_beams]):
            ids = [*self._generated[parents[i]].tolist(), int(token_ids[i])]
            score = self._final_score(totals[best[i]], length)
            self._keep(Hypothesis(ids, score, "stop" if stops[i] else "length"))
        going = np.flatnonzero(~ends)[: self._beams.num_beams]
        if not len(going) and not self._hypotheses:
            raise no_token()
        self._continue(parents[going], token_ids[going], totals[best[going]])

    def _log_probs(self, logits: FloatArray) -> FloatArray:
        """Log-probabilities [beams, vocab] after what the parameters and limits do to them."""
        sampling = self._sequence.sampling
        rows = zip(log_softmax(logits), self._generated, strict=True)
        scores = np.stack(
            [penalize(row, sampling, self._prompt_ids, generated) for row, generated in rows]
        )
        if self._generated.shape[1] < self._limits.min_new_tokens:
            scores[:, list(self._limits.eos)] = -np.inf
        forced = self._limits.forced(int(self._generated.shape[1]), self._most)
        if forced is not None:
            scores[:] = -np.inf
            scores[:, forced] = 0
        return scores

    def _final_score(self, total: np.float32, length: int) -> float:
        return float(total) / float(length**self._beams.length_penalty)

    def _keep(self, hypothesis: Hypothesis) -> None:
        self._hypotheses.append(hypothesis)
        self._hypotheses.sort(key=lambda kept: -kept.score)
        del self._hypotheses[self._beams.num_beams :]

    def _continue(self, parents: IntArray, token_ids: IntArray, scores: FloatArray) -> None:
        """Make the next beams, of which beam i continues ``parents[i]``: three arrays [beams]."""
        rows = assign_rows(parents.tolist())
        for parent, row in zip(parents.tolist(), rows, strict=True):
            if row != parent:
                self._copy(parent, row)
        by_row = np.argsort(rows)
        self._generated = np.column_stack((self._generated[parents], token_ids))[by_row]
        self._scores = scores[by_row]

    def _copy(self, parent: int, row: int) -> None:
        """Copy a beam's KV row over another one, but for the beginning that both share."""
        shared = 0
        if row < len(self._generated):
            differs = self._generated[row] != self._generated[parent]
            shared = len(self._prompt_ids) + int(differs.argmax())
        first = self._first_slot
        self._engine.cache.move(first + parent, first + row, self._cached, shared)


def assign_rows(parents: Sequence[int]) -> list[int]:
    """Return a row for each beam, given its parent's row, so that the fewest rows are copied.

    The first beam of each parent stays in the parent's row. The others get rows whose beams end
    here, so no copy overwrites what a later one reads. The rows are 0 to len(parents) - 1.
    """
    beams = range(len(parents))
    stays = {parents[beam]: beam for beam in reversed(beams) if parents[beam] < len(parents)}
    free = iter([row for row in beams if row not in stays])
    return [p if stays.get(p) == beam else next(free) for beam, p in enumerate(parents)]


def check_search(
    slots: int, beams: BeamParameters, sequence: decoding.Sequence, *, stream: bool = False
) -> None:
    """Raise UserError if there are too few slots, or for what a search can't be combined with."""
    if beams.num_beams > slots:
        raise UserError(
            f"num_beams is {beams.num_beams}, but there are {slots} slots: open the "
            f"bundle with slots={beams.num_beams}, or take fewer beams."
        )
    given = {
        "temperature": sequence.sampling.temperature > 0,
        "logprobs": sequence.sampling.logprobs is not None,
        "stop": bool(sequence.limits.stop),
        "stream": stream,
        "speculation": sequence.speculation is not None,
        "context_overflow": sequence.limits.slides,
        "constraint": sequence.matcher is not None,
    }
    for name, reason in _NOT_COMBINED.items():
        if given[name]:
            raise UserError(
                f"{name} can't be combined with beam search ({reason}): leave {name} out, or take "
                "num_beams=1."
            )


_NOT_COMBINED = {
    "temperature": "it keeps what is likeliest and draws nothing",
    "logprobs": "its results have a score of the whole sequence",
    "stop": "it compares sequences that end with whole tokens",
    "stream": "no token is certain before the search ends",
    "speculation": "a draft continues one sequence, and beams are several",
    "constraint": "it holds one sequence to a text",
    "context_overflow": "what slides is one sequence's cache, and beams share theirs",
}


def _is_within(value: object, kind: type, least: float, most: float = math.inf) -> bool:
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    return is_kind and least <= cast(float, value) <= most


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}, but must be {rule}: change {name}.")
