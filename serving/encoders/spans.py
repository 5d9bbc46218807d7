"""Labels of tokens, and the entities that they make up."""

from collections.abc import Sequence

from serving.encoders.answers import softmax
from serving.encoders.results import Span
from serving.encoders.texts import Segment
from serving.engine import FloatArray

_OUTSIDE = "O"


def label(
    text: str, segments: Sequence[Segment], logits: Sequence[FloatArray], labels: Sequence[str]
) -> list[Span]:
    """The label of each token of a text, from logits [n, labels] of each of its segments.

    Of a token that is in two segments, the one counts in which it is farther from the edge.
    """
    chosen: dict[tuple[int, int], tuple[int, Span]] = {}
    for segment, rows in zip(segments, logits, strict=True):
        probabilities = softmax(rows[: len(segment.offsets)])
        for place, (offset, sequence) in enumerate(
            zip(segment.offsets, segment.sequences, strict=True)
        ):
            if sequence is None:
                continue
            depth = min(place, len(segment.offsets) - 1 - place)
            best = int(probabilities[place].argmax())
            score = float(probabilities[place, best])
            span = Span(labels[best], score, text[slice(*offset)], *offset)
            if offset not in chosen or chosen[offset][0] < depth:
                chosen[offset] = depth, span
    return [chosen[offset][1] for offset in sorted(chosen)]


def group(text: str, tokens: Sequence[Span]) -> list[Span]:
    """Entities: neighbouring tokens of one kind, which a B- begins anew; O is none."""
    groups: list[list[Span]] = []
    previous = _OUTSIDE
    for token in tokens:
        prefix, kind = _split(token.label)
        if kind != _OUTSIDE:
            if kind == previous and prefix != "B":
                groups[-1].append(token)
            else:
                groups.append([token])
        previous = kind
    return [_joined(text, each) for each in groups]


def _joined(text: str, tokens: Sequence[Span]) -> Span:
    start, end = tokens[0].start, tokens[-1].end
    score = sum(token.score for token in tokens) / len(tokens)
    return Span(_split(tokens[0].label)[1], score, text[start:end], start, end)


def _split(name: str) -> tuple[str, str]:
    """A label's prefix and kind: B-PER is a token that begins a PER."""
    prefix, dash, kind = name.partition("-")
    return (prefix, kind) if dash and prefix in ("B", "I") else ("I", name)
