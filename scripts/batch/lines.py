"""Lines of the input, and the lines of the output that come of them."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from serving.errors import UserError
from serving.generation import GenerateOptions
from serving.result import Generation

# What a line is known by in the output: its own id, or its number in the input, counted from 1.
Key = tuple[Literal["id", "line"], str | int]

# A line may have any option of Model.generate that JSON can say.
_OPTIONS = get_type_hints(GenerateOptions)
del _OPTIONS["constraint"]
_OPTIONS["decoder_prompt"] = str | list[int] | None

_RESULTS = {"line", "text", "finish_reason", "prompt_tokens", "new_tokens", "logprobs", "error"}


class _Turn(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str


_Line = create_model(
    "_Line",
    __config__=ConfigDict(extra="allow", strict=True),
    id=(str | int | None, None),
    prompt=(str | list[int] | None, None),
    messages=(list[_Turn] | None, None),
    **{name: (type_, None) for name, type_ in _OPTIONS.items()},
)


@dataclass(frozen=True, slots=True)
class Task:
    """What a line asks for: a prompt or a conversation, with the line's own options.

    ``carried`` are the fields that it only passes on.
    """

    prompt: str | list[int] | None
    messages: list[dict[str, Any]] | None
    options: GenerateOptions
    carried: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input: its number, counted from 1, and its text."""

    number: int
    text: str

    @property
    def key(self) -> Key:
        """What it is known by."""
        try:
            document = json.loads(self.text)
        except ValueError:
            document = None
        return key_of(document, ("id",)) or ("line", self.number)

    def task(self) -> Task:
        """What it asks for; raises UserError if that isn't clear."""
        try:
            line = _Line.model_validate_json(self.text)
        except ValidationError as error:
            raise unreadable(error) from error
        fields = line.model_dump(exclude_unset=True)
        prompt, messages = fields.pop("prompt", None), fields.pop("messages", None)
        if (prompt is None) == (messages is None):
            raise UserError("The line needs either prompt or messages: give one of them.")
        options = {name: fields.pop(name) for name in _OPTIONS if name in fields}
        for name in sorted(_RESULTS & fields.keys()):
            raise UserError(f"The field {name!r} is one of the results' own: rename it.")
        return Task(prompt, messages, options, fields)

    def result(self, generation: Generation, carried: dict[str, Any]) -> str:
        """The line of the output for what was generated."""
        fields = carried | {
            "text": generation.text,
            "finish_reason": generation.finish_reason,
            "prompt_tokens": generation.prompt_tokens,
            "new_tokens": len(generation.token_ids),
        }
        if generation.logprobs is not None:
            fields["logprobs"] = [asdict(each) for each in generation.logprobs]
        return self.output(fields)

    def failure(self, error: UserError, carried: dict[str, Any]) -> str:
        """The line of the output for what went wrong."""
        return self.output(carried | {"error": str(error)})

    def output(self, fields: dict[str, Any]) -> str:
        """A line of the output."""
        key = dict([self.key])
        # In ASCII, for ids that no UTF-8 can have.
        return json.dumps(key | fields | key)


def unreadable(error: ValidationError) -> UserError:
    """What is wrong with a line that doesn't follow its schema."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "The line"
    return UserError(f"{where} can't be read ({first['msg']}): mend the line.")


def key_of(document: object, kinds: tuple[Literal["id", "line"], ...]) -> Key | None:
    """What a line of the input or the output is known by, if it says so."""
    if isinstance(document, dict):
        for kind in kinds:
            value = document.get(kind)
            if isinstance(value, (str, int)) and not isinstance(value, bool):
                return (kind, value)
    return None
