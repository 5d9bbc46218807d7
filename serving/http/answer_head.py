"""What all parts of an answer have in common."""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from serving.http.schemas.answers import Usage
from serving.http.served_model import ServedModel

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """An answer's id, and what made it; ``created`` is in seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def of(cls, model: ServedModel, prefix: str) -> "AnswerHead":
        """The head of a new answer; ``prefix`` says of what kind."""
        return cls(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model.name,
            system_fingerprint=model.fingerprint.text,
        )

    def fields(self, kind: str) -> dict[str, Any]:
        """The first fields of a document of that kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class ChunkTemplate:
    """Writes an answer's server-sent events; what they have in common is written once.

    With ``has_usage`` every chunk says that it has none, and the last one has it, as OpenAI does.
    """

    def __init__(self, head: AnswerHead, kind: str, has_usage: bool) -> None:
        fields = json.dumps(head.fields(kind), separators=(",", ":"))[:-1]
        self._begin = f'data: {fields},"choices":['
        self._end = '],"usage":null}\n\n' if has_usage else "]}\n\n"
        self._has_usage = has_usage

    def chunk(self, choice: str) -> str:
        """The event with a choice, which is JSON already."""
        return f"{self._begin}{choice}{self._end}"

    def closing(self, usage: Usage) -> str:
        """The events behind all others."""
        if not self._has_usage:
            return DONE
        return f'{self._begin}],"usage":{json.dumps(usage)}}}\n\n{DONE}'
