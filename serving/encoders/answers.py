"""From logits to answers: probabilities, candidates for a mask, the best span of a context."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.encoders.batching import Tokens
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
    tokenizer: "Tokenizer",
    tokens: Tokens,
    place: int,
    logits: FloatArray,
    top_k: int,
    targets: Sequence[int] | None = None,
) -> list[Candidate]:
    """The likeliest tokens at one place of a text, of ``targets`` if given; logits are [vocab].

    Where other masks are left, the text with a candidate shows all special tokens.
    """
    probabilities, ids = softmax(logits), tokens.ids
    allowed = np.arange(len(probabilities)) if targets is None else np.unique(targets)
    top = allowed[np.argsort(-probabilities[allowed], kind="stable")[:top_k]]
    found = []
    for token_id in map(int, top):
        filled = [*ids[:place], token_id, *ids[place + 1 :]]
        text = tokenizer.decode(filled, skip_special_tokens=len(tokens.positions) == 1)
        token = tokenizer.decode([token_id], skip_special_tokens=False).strip()
        found.append(Candidate(token, token_id, float(probabilities[token_id]), text))
    return found


def likeliest_spans(
    segment: Segment, starts: FloatArray, ends: FloatArray, max_tokens: int, top_k: int
) -> list[ScoredSpan]:
    """The ``top_k`` likeliest spans of a segment's context, from logits [n] of their ends."""
    length = len(segment.tokens.ids)
    inside = np.array([sequence == 1 for sequence in segment.sequences])
    start, end = (softmax(np.where(inside, logits[:length], -np.inf)) for logits in (starts, ends))
    # Entry [i, j] is the span of i + 1 tokens from token j on.
    scores = np.full((min(max_tokens, length), length), -1.0)
    for more in range(len(scores)):
        products = start[: length - more] * end[more:]
        is_possible = inside[: length - more] & inside[more:]
        scores[more, : length - more] = np.where(is_possible, products, -1.0)
    likeliest = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    spans, offsets = [], segment.offsets
    for more, first in zip(*np.unravel_index(likeliest, scores.shape), strict=True):
        score, last = float(scores[more, first]), int(first) + int(more)
        if score >= 0:
            spans.append(ScoredSpan(score, offsets[int(first)][0], offsets[last][1]))
    return spans
