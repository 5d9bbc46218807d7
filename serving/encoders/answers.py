"""From logits to answers: probabilities, candidates for a mask, the best span of a context."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.encoders.results import Candidate
from serving.encoders.texts import Segment
from serving.engine import FloatArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Doubles = npt.NDArray[np.float64]


class ScoredSpan(NamedTuple):
    """Characters of a context; the likeliest of several spans is their maximum."""

    score: float
    start: int
    end: int


def softmax(logits: npt.NDArray[Any]) -> Doubles:
    """Probabilities over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: Doubles = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def candidates(
    tokenizer: "Tokenizer", ids: Sequence[int], place: int, logits: FloatArray, top_k: int
) -> list[Candidate]:
    """The likeliest tokens at one place of a text, from logits [vocab]."""
    probabilities = softmax(logits)
    top = np.argsort(-probabilities, kind="stable")[:top_k]
    found = []
    for token_id in map(int, top):
        filled = [*ids[:place], token_id, *ids[place + 1 :]]
        text = tokenizer.decode(filled, skip_special_tokens=True)
        token = tokenizer.decode([token_id], skip_special_tokens=False).strip()
        found.append(Candidate(token, token_id, float(probabilities[token_id]), text))
    return found


def best_span(
    segment: Segment, starts: FloatArray, ends: FloatArray, max_tokens: int
) -> ScoredSpan:
    """The likeliest span of a segment's context, from logits [n] of where it starts and ends."""
    length = len(segment.tokens.ids)
    inside = np.array([sequence == 1 for sequence in segment.sequences])
    start, end = (softmax(np.where(inside, logits[:length], -np.inf)) for logits in (starts, ends))
    # Entry [i, j] is the span from token i to token j, both included.
    scores = np.triu(np.outer(start, end)) - np.triu(np.outer(start, end), max_tokens)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    offsets = segment.offsets
    return ScoredSpan(float(scores[first, last]), offsets[int(first)][0], offsets[int(last)][1])
