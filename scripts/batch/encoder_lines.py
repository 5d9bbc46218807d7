"""Lines of the input for an encoder: what each asks for."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.batch.lines import Line, unreadable
from serving.encoders.contract import Task
from serving.encoders.texts import ContextOverflow, Text
from serving.errors import UserError

# By what a result of each task is known in the output.
RESULTS: dict[Task, str] = {
    "embed": "embedding",
    "text-classification": "labels",
    "token-classification": "entities",
    "fill-mask": "candidates",
    "question-answering": "answer",
}
_ALL_RESULTS = {"line", "error", "scores", "score", "start", "end", "tokens", "truncated"}
_ALL_RESULTS |= {"segments", *RESULTS.values()}


class _Line(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: str | int | None = None
    text: str | None = None
    text_pair: str | None = None
    question: str | None = None
    context: str | None = None
    context_overflow: Literal["refuse", "truncate", "segments"] | None = None
    overlap: int | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=1)


@dataclass(frozen=True, slots=True)
class EncoderTask:
    """What a line asks for: a text, a pair of them, or a question with its context.

    ``carried`` are the fields that it only passes on; None is what the command says.
    """

    text: Text
    context_overflow: ContextOverflow | None
    overlap: int | None
    top_k: int | None
    carried: dict[str, Any]


def encoder_task(line: Line, task: Task) -> EncoderTask:
    """What a line asks an encoder of this task for; raises UserError if that isn't clear."""
    try:
        read = _Line.model_validate_json(line.text)
    except ValidationError as error:
        raise unreadable(error) from error
    carried = dict(read.model_extra or {})
    if "id" in read.model_fields_set:
        carried["id"] = read.id
    for name in sorted(_ALL_RESULTS & carried.keys()):
        raise UserError(f"The field {name!r} is one of the results' own: rename it.")
    if read.top_k is not None and task != "fill-mask":
        raise UserError(f"top_k is for fill-mask, not for {task}: take it out.")
    overflow = read.context_overflow
    if overflow is None and read.overlap is not None:
        overflow = "segments"
    return EncoderTask(_text(read, task), overflow, read.overlap, read.top_k, carried)


def _text(line: _Line, task: Task) -> Text:
    is_question = line.question is not None and line.context is not None
    is_text = line.text is not None
    if task == "question-answering":
        if not is_question or is_text or line.text_pair is not None:
            raise UserError("The line needs question and context, and no text: give both.")
        return str(line.question), str(line.context)
    if not is_text or line.question is not None or line.context is not None:
        raise UserError("The line needs text, and no question or context: give it.")
    if line.text_pair is None:
        return str(line.text)
    if task != "text-classification":
        raise UserError(f"text_pair is for text-classification, not for {task}: take it out.")
    return str(line.text), line.text_pair
