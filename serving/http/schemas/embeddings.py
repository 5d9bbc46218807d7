"""Requests to ``/v1/embeddings``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serving.embedding import Pooling
from serving.http.schemas.common import MOST_TOKENS, Ignored, Positive, Schema
from serving.http.schemas.prompts import Inputs, prompts_of


class EmbeddingRequest(Schema):
    """Texts or token ids to embed."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: Annotated[Any, Ignored] = None

    # Extensions.
    pooling: Pooling | None = None
    context_overflow: Literal["refuse", "truncate", "segments"] | None = None
    overlap: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs, each a text or token ids."""
        return prompts_of(self.input)
