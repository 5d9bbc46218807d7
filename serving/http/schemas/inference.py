"""Requests to ``/models/{model}``, and their answers: those of Hugging Face's inference API."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from serving.encoders.joining import Activation
from serving.http.schemas.common import MOST_CHOICES, MOST_TOKENS, Ignored, Schema

Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Overlap = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Several = Field(min_length=1, max_length=MOST_CHOICES)


class TextPair(Schema):
    """Two texts that are classified together."""

    text: str
    text_pair: str


class Question(Schema):
    """A question, and the text that has its answer."""

    question: str
    context: str


class Similarity(Schema):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: Annotated[list[str], Several]


Inputs = (
    str
    | Annotated[list[str], Several]
    | TextPair
    | Annotated[list[TextPair], Several]
    | Question
    | Annotated[list[Question], Several]
    | Similarity
)


class Parameters(Schema):
    """Each is for the tasks that it is written under; ``null`` is as if it weren't there."""

    # Text classification, fill-mask and question answering.
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    # Text classification.
    function_to_apply: Activation | None = None
    # Fill-mask.
    targets: Annotated[list[str], Several] | None = None
    # Token classification.
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: list[str] | None = None
    stride: Overlap | None = None
    # Question answering.
    max_answer_len: Annotated[int, Field(ge=1, le=512)] | None = None
    doc_stride: Overlap | None = None
    align_to_words: bool | None = None
    handle_impossible_answer: bool | None = None
    max_question_len: Count | None = None
    max_seq_len: Count | None = None

    # Extensions.
    context_overflow: Literal["refuse", "truncate", "segments"] | None = None
    overlap: Overlap | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None


class InferenceRequest(Schema):
    """What an encoder is asked for; those of feature extraction stand beside ``parameters``."""

    inputs: Inputs
    parameters: Parameters | None = None
    options: Annotated[Any, Ignored] = None

    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["left", "right"] | None = None
    prompt_name: str | None = None
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None


class Label(TypedDict):
    """A label of a text, and its score."""

    label: str
    score: float


class Entity(TypedDict):
    """Characters ``start`` to ``end`` of a text that are of one kind."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class LabelledToken(TypedDict):
    """The label of a token, which is characters ``start`` to ``end`` of a text."""

    entity: str
    score: float
    word: str
    start: int
    end: int


class MaskCandidate(TypedDict):
    """A token that may stand for a mask, by its id and as text, and the whole text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


class AnswerSpan(TypedDict):
    """The part of a context that answers a question: its characters ``start`` to ``end``."""

    answer: str
    score: float
    start: int
    end: int


Vectors = list[list[float]]
Inference = (
    list[list[Label]]
    | list[Entity | LabelledToken]
    | list[list[Entity | LabelledToken]]
    | list[MaskCandidate]
    | list[list[MaskCandidate]]
    | list[list[list[MaskCandidate]]]
    | AnswerSpan
    | list[AnswerSpan]
    | list[list[AnswerSpan]]
    | Vectors
    | list[float]
)
