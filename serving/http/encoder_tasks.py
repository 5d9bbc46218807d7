"""What each task of encoders makes of a request to ``/models/{model}``.

Answers have the fields of Hugging Face's. One input gives what its pipelines give for one, a list
of them a list.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving.encoders import joining
from serving.encoders.contract import Task
from serving.encoders.results import Candidate, Span
from serving.encoders.texts import EncodedText, Text
from serving.http.encoding import EncodingCall
from serving.http.errors import invalid, unsupported
from serving.http.schemas.inference import (
    AnswerSpan,
    Entity,
    InferenceRequest,
    Inputs,
    Label,
    LabelledToken,
    MaskCandidate,
    Parameters,
    Question,
    Similarity,
    TextPair,
)

Infer = Callable[[EncodingCall, InferenceRequest, Parameters], Awaitable[Any]]

# Each mask's logits are as long as the vocabulary.
_MOST_MASKS = 16

# Pipelines' own defaults.
_CANDIDATES = 5
_ANSWER_TOKENS = 15
_OUTSIDE = "O"


async def classify(
    call: EncodingCall, body: InferenceRequest, parameters: Parameters
) -> list[list[Label]]:
    """The labels of each text or pair of texts, likeliest first."""
    texts = [_text_or_pair(each) for each in _listed(body.inputs)]
    encoded = await _encode(call, texts, parameters)
    answers = []
    for text, rows in zip(encoded, await call.rows(encoded), strict=True):
        found = joining.classification(call.model.encoder, text, rows, parameters.function_to_apply)
        labels = zip(found.labels, found.scores, strict=True)
        answers.append([Label(label=label, score=score) for label, score in labels])
    return [labels[: parameters.top_k] for labels in answers]


async def label_tokens(call: EncodingCall, body: InferenceRequest, parameters: Parameters) -> Any:
    """The entities of each text or, without aggregation, the labels of its tokens."""
    strategy = parameters.aggregation_strategy or "simple"
    if strategy not in ("simple", "none"):
        raise unsupported(
            "parameters.aggregation_strategy",
            f"'{strategy}' needs words, which this server doesn't know: take 'simple' or 'none'.",
        )
    ignored = [_OUTSIDE] if parameters.ignore_labels is None else parameters.ignore_labels
    if strategy == "simple" and _OUTSIDE not in ignored:
        raise unsupported(
            "parameters.ignore_labels",
            f"What is outside of entities isn't grouped: name {_OUTSIDE} as well, or take the "
            "aggregation_strategy 'none'.",
        )
    texts = [_text(each) for each in _listed(body.inputs)]
    encoded = await _encode(call, texts, parameters, parameters.stride)
    answers = []
    for text, tokens, rows in zip(texts, encoded, await call.rows(encoded), strict=True):
        found = joining.labelled_spans(
            call.model.encoder, text, tokens, rows, grouped=strategy == "simple"
        )
        answers.append([_span(each, strategy) for each in found if each.label not in ignored])
    return _as_asked(answers, body)


async def fill_mask(call: EncodingCall, body: InferenceRequest, parameters: Parameters) -> Any:
    """The likeliest tokens for the mask of each text, or a list of them for each of its masks."""
    model = call.model
    tokenizer = model.texts.tokenizer
    _refuse_long(parameters)
    targets = None
    if parameters.targets is not None:
        targets = [_token(tokenizer.token_to_id(each), each) for each in parameters.targets]
    texts = [_text(each) for each in _listed(body.inputs)]
    masked = [
        await model.beside("inputs", joining.with_masks, model.encoder, tokenizer, text)
        for text in await model.encode(texts, "inputs")
    ]
    most = max(len(text.segments[0].tokens.positions) for text in masked)
    if most > _MOST_MASKS:
        raise invalid(
            "inputs", f"'inputs' has {most} masks, but at most {_MOST_MASKS} are allowed."
        )

    def candidates(text: EncodedText, rows: Sequence[joining.Row]) -> list[list[MaskCandidate]]:
        top_k = parameters.top_k or _CANDIDATES
        found = joining.candidates(tokenizer, text, rows, top_k, targets)
        return [[_candidate(tokenizer, each) for each in of_mask] for of_mask in found]

    answers: list[Any] = []
    for text, rows in zip(masked, await call.rows(masked), strict=True):
        of_masks = await model.beside("inputs", candidates, text, rows)
        answers.append(of_masks if len(of_masks) > 1 else of_masks[0])
    return _as_asked(answers, body)


async def answer(call: EncodingCall, body: InferenceRequest, parameters: Parameters) -> Any:
    """The likeliest answer to each question, or a list of the ``top_k`` likeliest."""
    if parameters.align_to_words:
        raise _not_done("align_to_words", "answers begin and end with tokens")
    if parameters.handle_impossible_answer:
        raise _not_done("handle_impossible_answer", "every question gets its likeliest answer")
    questions = [_question(each) for each in _listed(body.inputs)]
    texts = [(each.question, each.context) for each in questions]
    encoded = await _encode(call, texts, parameters, parameters.doc_stride)
    answers: list[Any] = []
    for each, text, rows in zip(questions, encoded, await call.rows(encoded), strict=True):
        found = await call.model.beside(
            "inputs",
            joining.likeliest_answers,
            each.context,
            text,
            rows,
            parameters.max_answer_len or _ANSWER_TOKENS,
            parameters.top_k or 1,
        )
        spans = [
            AnswerSpan(answer=one.text, score=one.score, start=one.start, end=one.end)
            for one in found
        ]
        answers.append(spans if (parameters.top_k or 1) > 1 else spans[0])
    return _as_asked(answers, body)


async def embed(call: EncodingCall, body: InferenceRequest, parameters: Parameters) -> Any:
    """A vector for each text, or how alike sentences are to another one: their cosines."""
    _check_vectors(call, body, parameters)
    if isinstance(body.inputs, Similarity):
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
    else:
        texts = [_text(each) for each in _listed(body.inputs)]
    if body.truncate:
        parameters = parameters.model_copy(update={"context_overflow": "truncate"})
    encoded = await _encode(call, texts, parameters)
    vectors = joining.embeddings(call.model.encoder, encoded, await call.rows(encoded)).vectors
    if body.normalize or isinstance(body.inputs, Similarity):
        vectors = joining.normalized(vectors)
    if isinstance(body.inputs, Similarity):
        cosines: list[float] = (vectors[1:] @ vectors[0]).tolist()
        return cosines
    return vectors


TASKS: dict[Task, tuple[Infer, frozenset[str]]] = {
    "text-classification": (
        classify,
        frozenset({"top_k", "function_to_apply"}),
    ),
    "token-classification": (
        label_tokens,
        frozenset({"aggregation_strategy", "ignore_labels", "stride"}),
    ),
    "fill-mask": (fill_mask, frozenset({"top_k", "targets"})),
    "question-answering": (
        answer,
        frozenset(
            {
                "top_k",
                "max_answer_len",
                "doc_stride",
                "align_to_words",
                "handle_impossible_answer",
            }
        ),
    ),
    "embed": (
        embed,
        frozenset(
            {
                "normalize",
                "truncate",
                "truncation_direction",
                "prompt_name",
                "dimensions",
                "encoding_format",
            }
        ),
    ),
}
"""How each task answers, and which parameters it has beside those of every task."""


async def _encode(
    call: EncodingCall,
    texts: Sequence[Text],
    parameters: Parameters,
    stride: int | None = None,
) -> list[EncodedText]:
    """Tokens of texts; a ``stride`` splits those that are too long, as it does in pipelines."""
    overflow, overlap = parameters.context_overflow, parameters.overlap
    if stride is not None:
        if overlap is not None or overflow not in (None, "segments"):
            raise invalid(
                "parameters.overlap",
                "A stride splits long texts into segments with that overlap: leave overlap and "
                "context_overflow out.",
            )
        overflow, overlap = "segments", stride
    return await call.model.encode(texts, "inputs", overflow or "refuse", overlap)


def _check_vectors(call: EncodingCall, body: InferenceRequest, parameters: Parameters) -> None:
    """Raise ApiError for what isn't done with vectors."""
    encoder = call.model.encoder
    if body.dimensions not in (None, encoder.hidden_size):
        raise unsupported(
            "dimensions",
            f"The model's vectors have {encoder.hidden_size} dimensions, and all count.",
        )
    if body.encoding_format == "base64":
        raise unsupported("encoding_format", "Vectors are numbers here: ask /v1/embeddings.")
    if body.prompt_name is not None:
        raise unsupported("prompt_name", "Bundles have no prompts: write it before the text.")
    if body.truncation_direction == "left":
        raise unsupported("truncation_direction", "Long texts lose their end: take 'right'.")
    if body.normalize is False and encoder.normalize:
        raise unsupported("normalize", "The model's vectors have length 1: take true.")
    if body.truncate and parameters.context_overflow not in (None, "truncate"):
        raise invalid("truncate", "context_overflow says otherwise: leave one of them out.")


def _refuse_long(parameters: Parameters) -> None:
    if parameters.context_overflow not in (None, "refuse"):
        raise unsupported(
            "parameters.context_overflow", "Text around a mask is never cut: shorten it."
        )


def _not_done(name: str, what: str) -> Exception:
    return unsupported(f"parameters.{name}", f"'{name}' isn't there, for {what}: leave it out.")


def _listed(inputs: Inputs) -> list[Any]:
    return inputs if isinstance(inputs, list) else [inputs]


def _as_asked(answers: list[Any], body: InferenceRequest) -> Any:
    """The answers, or the only one where a single input was given."""
    return answers if isinstance(body.inputs, list) else answers[0]


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise invalid("inputs", "This task takes a text, or a list of texts.", "invalid_value")
    return given


def _text_or_pair(given: object) -> Text:
    if isinstance(given, TextPair):
        return given.text, given.text_pair
    return _text(given)


def _question(given: object) -> Question:
    if not isinstance(given, Question):
        raise invalid("inputs", "This task takes a question and its context.", "invalid_value")
    return given


def _token(token_id: int | None, target: str) -> int:
    if token_id is None:
        raise invalid(
            "parameters.targets", f"{target!r} is no token of the vocabulary: take one that is."
        )
    return token_id


def _span(found: Span, strategy: str) -> Entity | LabelledToken:
    if strategy == "simple":
        return Entity(
            entity_group=found.label,
            score=found.score,
            word=found.text,
            start=found.start,
            end=found.end,
        )
    return LabelledToken(
        entity=found.label, score=found.score, word=found.text, start=found.start, end=found.end
    )


def _candidate(tokenizer: Any, found: Candidate) -> MaskCandidate:
    return MaskCandidate(
        score=found.score,
        token=found.token_id,
        token_str=tokenizer.decode([found.token_id], skip_special_tokens=False),
        sequence=found.text,
    )
