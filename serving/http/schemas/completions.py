"""Requests to ``/v1/completions``."""

from typing import Annotated

from pydantic import Field

from serving.http.schemas.beams import EarlyStopping, LengthPenalty, NumBeams
from serving.http.schemas.common import MOST_CHOICES, GenerationRequest, TopLogprobs
from serving.http.schemas.prompts import Prompts, prompts_of

Language = Annotated[str, Field(min_length=1, max_length=64)]


class CompletionRequest(GenerationRequest):
    """Texts or token ids to go on with."""

    prompt: Prompts
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: str | None = None

    # Extensions: a beam search, and an encoder-decoder's languages.
    num_beams: NumBeams | None = None
    length_penalty: LengthPenalty | None = None
    early_stopping: EarlyStopping | None = None
    source_language: Language | None = None
    target_language: Language | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        return prompts_of(self.prompt)
