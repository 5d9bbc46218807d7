"""What an ensemble's models tell each other: beside the ids, all that the next one must know."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.detokenizer import Vocabulary
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Span(NamedTuple):
    """A sequence's part of a response: so many ``ids``, and where its text begins and its length.

    Both are in characters, of the text of the context and the ids together.
    """

    ids: int
    begin: int
    length: int


class Handover(BaseModel):
    """One message: from preprocessing to the engine, or from there to postprocessing.

    Ids are those of the ``tokenizer`` with this digest. An answer begins with the ``prefix``. The
    ids of a response follow on those of its ``context``; it has a span for each sequence.
    Responses without ids have a ``probe``, the key of a question to answer, or an ``error``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str = ""
    prefix: str = ""
    context: Sequence[int] = ()
    spans: Sequence[Span] = ()
    probe: str = ""
    error: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """The message that ``write`` made a text of; raises UserError for another text."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UserError(
                f"handover can't be read ({error.errors()[0]['msg']}): leave it out, or pass on "
                "what the model before says."
            ) from error

    def write(self) -> str:
        """The message as JSON."""
        return self.model_dump_json(exclude_defaults=True)

    def check_tokenizer(self, digest: str) -> None:
        """Raise UserError unless the ids are those of the tokenizer with this ``digest``."""
        if self.tokenizer != digest:
            raise UserError(
                "The ensemble's models have different tokenizers, as one of them is being "
                "replaced: send the request again."
            )

    def texts(self, vocabulary: Vocabulary, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each sequence, whose ids are a row's first ones.

        Raises UserError if the rows aren't those that this is about.
        """
        if len(rows) != len(self.spans):
            raise UserError(
                f"handover is about {len(self.spans)} sequences and output_ids has {len(rows)}: "
                "send both as the engine said them."
            )
        return [
            self.prefix + self._text(vocabulary, row[: span.ids], span)
            for row, span in zip(rows, self.spans, strict=True)
        ]

    def _text(self, vocabulary: Vocabulary, ids: Sequence[int], span: Span) -> str:
        text = vocabulary.decode([*self.context, *ids]) if span.length else ""
        return text[span.begin : span.begin + span.length]


def tokenizer_digest(tokenizer: "Tokenizer") -> str:
    """What tells a tokenizer from others."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]
