"""From what an engine gives for a text, whole or in segments, to the result of a task.

``rows`` are, of each segment, the row of an output: see serving/encoders/contract.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.bundle import EncoderInfo
from serving.encoders import answers, spans
from serving.encoders.results import Answer, Candidate, Classification, Span
from serving.encoders.texts import EncodedText
from serving.engine import FloatArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def embedding(encoder: EncoderInfo, text: EncodedText, rows: Sequence[FloatArray]) -> FloatArray:
    """The vector [hidden] of a text: that of several segments is their weighted mean."""
    vector = _mean(text, rows) if len(rows) > 1 else rows[0]
    length = np.linalg.norm(vector)
    return vector / length if encoder.normalize and length > 0 else vector


def classification(
    encoder: EncoderInfo, text: EncodedText, rows: Sequence[FloatArray]
) -> Classification:
    """All labels of a text."""
    logits = np.stack(rows).astype(np.float64)
    is_alone = encoder.is_multi_label or len(encoder.labels) == 1
    scores = _mean(text, list(1 / (1 + np.exp(-logits)) if is_alone else answers.softmax(logits)))
    order = np.argsort(-scores, kind="stable")
    return Classification(
        tuple(encoder.labels[index] for index in order),
        tuple(float(scores[index]) for index in order),
        text.token_count,
        text.is_truncated,
        len(text.segments),
    )


def filled_masks(
    tokenizer: "Tokenizer",
    encoder: EncoderInfo,
    text: EncodedText,
    rows: Sequence[FloatArray],
    top_k: int,
) -> list[list[Candidate]]:
    """The likeliest tokens for each mask of a text in one segment."""
    ids = text.segments[0].tokens.ids
    return [
        answers.candidates(tokenizer, ids, place, row, top_k)
        for place, row in zip(mask_places(encoder, ids), rows[0], strict=True)
    ]


def mask_places(encoder: EncoderInfo, ids: Sequence[int]) -> list[int]:
    """Where masks are."""
    return [place for place, token in enumerate(ids) if token == encoder.mask_token]


def labelled_spans(
    encoder: EncoderInfo,
    text: EncodedText,
    string: str,
    rows: Sequence[FloatArray],
    *,
    grouped: bool,
) -> list[Span]:
    """The labels of a text's tokens or, ``grouped``, the entities that they make up."""
    labelled = spans.label(string, text.segments, rows, encoder.labels)
    return spans.group(string, labelled) if grouped else labelled


def answer(
    text: EncodedText,
    context: str,
    starts: Sequence[FloatArray],
    ends: Sequence[FloatArray],
    max_tokens: int,
) -> Answer:
    """The likeliest part of a context, of up to so many tokens."""
    best = max(
        answers.best_span(segment, start, end, max_tokens)
        for segment, start, end in zip(text.segments, starts, ends, strict=True)
    )
    return Answer(
        context[best.start : best.end],
        best.score,
        best.start,
        best.end,
        text.token_count,
        text.is_truncated,
        len(text.segments),
    )


def _mean(text: EncodedText, rows: Sequence[FloatArray]) -> FloatArray:
    """The mean of what the segments of a text gave, weighted with the tokens new in each."""
    weights = [segment.new for segment in text.segments]
    mean: FloatArray = np.average(np.stack(rows), axis=0, weights=weights)
    return mean
