"""From what a graph gives for each segment of a text to what the text's task is for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from serving.bundle import EncoderInfo
from serving.encoders import answers, spans
from serving.encoders.answers import Doubles
from serving.encoders.results import Answer, Candidate, Classification, Span, TextEmbeddings
from serving.encoders.texts import EncodedText
from serving.engine import FloatArray
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a graph gives for a segment: its outputs, in order; see EncoderModel.run_batch.
Row = Sequence[FloatArray]
Activation = Literal["softmax", "sigmoid", "none"]
_ACTIVATIONS: dict[Activation, Callable[[Doubles], Doubles]] = {
    "softmax": answers.softmax,
    "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "none": lambda logits: logits,
}


def rows_of_texts(texts: Iterable[EncodedText], rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each text's segments, from those of all segments."""
    remaining = iter(rows)
    return [[next(remaining) for _ in text.segments] for text in texts]


def embeddings(
    encoder: EncoderInfo, texts: Sequence[EncodedText], rows: Sequence[Sequence[Row]]
) -> TextEmbeddings:
    """A vector for each text, from those of its segments."""
    pooled = [
        _mean(text, [row[0] for row in own]) if len(own) > 1 else own[0][0]
        for text, own in zip(texts, rows, strict=True)
    ]
    joined = np.stack(pooled) if pooled else np.zeros((0, encoder.hidden_size or 0), np.float32)
    return TextEmbeddings(
        (normalized(joined) if encoder.normalize else joined).astype(np.float32),
        [text.token_count for text in texts],
        [text.is_truncated for text in texts],
        [len(text.segments) for text in texts],
    )


def normalized(vectors: FloatArray) -> FloatArray:
    """Vectors [n, hidden] with length 1; one of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def classification(
    encoder: EncoderInfo,
    text: EncodedText,
    rows: Sequence[Row],
    activation: Activation | None = None,
) -> Classification:
    """A text's labels, from logits [labels]; ``activation`` defaults to what the head is for."""
    is_alone = encoder.is_multi_label or len(encoder.labels) == 1
    chosen: Activation = activation or ("sigmoid" if is_alone else "softmax")
    logits = np.stack([row[0] for row in rows]).astype(np.float64)
    scores = _mean(text, list(_ACTIVATIONS[chosen](logits)))
    order = np.argsort(-scores, kind="stable")
    return Classification(
        tuple(encoder.labels[index] for index in order),
        tuple(float(scores[index]) for index in order),
        text.token_count,
        text.is_truncated,
        len(text.segments),
    )


def with_masks(
    encoder: EncoderInfo, tokenizer: "Tokenizer", text: EncodedText, name: str = "The text"
) -> EncodedText:
    """A text of one segment that asks for its masks' logits; raises UserError if it has none.

    ``name`` is what the error calls it.
    """
    mask = encoder.mask_token
    if mask is None:
        raise UserError("This bundle's tokenizer has no mask token: export another checkpoint.")
    (segment,) = text.segments
    places = [place for place, token in enumerate(segment.tokens.ids) if token == mask]
    if not places:
        raise UserError(f"{name} has no {tokenizer.id_to_token(mask)}: put one in it.")
    return EncodedText((replace(segment, tokens=replace(segment.tokens, positions=places)),))


def candidates(
    tokenizer: "Tokenizer",
    text: EncodedText,
    rows: Sequence[Row],
    top_k: int,
    targets: Sequence[int] | None = None,
) -> list[list[Candidate]]:
    """The likeliest tokens for each mask, of ``targets`` if given; logits are [masks, vocab]."""
    (segment,), (row,) = text.segments, rows
    return [
        answers.candidates(tokenizer, segment.tokens, place, logits, top_k, targets)
        for place, logits in zip(segment.tokens.positions, row[0], strict=True)
    ]


def labelled_spans(
    encoder: EncoderInfo, text: str, encoded: EncodedText, rows: Sequence[Row], *, grouped: bool
) -> list[Span]:
    """The label of each token or, ``grouped``, each entity, from logits [n, labels]."""
    logits = [row[0] for row in rows]
    tokens = spans.label(text, encoded.segments, logits, encoder.labels)
    return spans.group(text, tokens) if grouped else tokens


def likeliest_answers(
    context: str, text: EncodedText, rows: Sequence[Row], max_tokens: int, top_k: int = 1
) -> list[Answer]:
    """The ``top_k`` likeliest answers in all segments, from logits [n] of starts and of ends."""
    found: dict[tuple[int, int], answers.ScoredSpan] = {}
    for segment, (starts, ends) in zip(text.segments, rows, strict=True):
        for span in answers.likeliest_spans(segment, starts, ends, max_tokens, top_k):
            known = found.get((span.start, span.end), span)
            found[span.start, span.end] = max(known, span)
    return [
        Answer(
            context[span.start : span.end],
            span.score,
            span.start,
            span.end,
            text.token_count,
            text.is_truncated,
            len(text.segments),
        )
        for span in sorted(found.values(), key=lambda each: -each.score)[:top_k]
    ]


def _mean(text: EncodedText, rows: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The mean of what the segments of a text gave, weighted with the tokens new in each."""
    weights = [segment.new for segment in text.segments]
    mean: npt.NDArray[Any] = np.average(np.stack(rows), axis=0, weights=weights)
    return mean
