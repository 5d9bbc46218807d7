"""What an encoder's tasks give."""

from dataclasses import dataclass

from serving.engine import FloatArray


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """One vector for each of n texts: ``vectors`` float32 [n, hidden].

    ``prompt_tokens`` counts what was embedded of each, and ``segments`` in how many parts; of a
    ``truncated`` text the end is missing.
    """

    vectors: FloatArray
    prompt_tokens: list[int]
    truncated: list[bool]
    segments: list[int]


@dataclass(frozen=True, slots=True)
class Classification:
    """A text's labels, likeliest first, each with its score from 0 to 1.

    Scores add up to 1, unless several labels may hold. Those of several ``segments`` are averaged.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    tokens: int
    truncated: bool
    segments: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may stand for a mask, its probability, and the text with it in the mask's place.

    Where a text has several masks the others are left as they are.
    """

    token: str
    token_id: int
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The part of a context that answers a question: characters ``start`` to ``end`` of it.

    ``score`` is the probability of that part among all of its segment.
    """

    text: str
    score: float
    start: int
    end: int
    tokens: int
    truncated: bool
    segments: int


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a text that have one label; ``score`` is its probability.

    That of a group of tokens is their mean.
    """

    label: str
    score: float
    text: str
    start: int
    end: int
