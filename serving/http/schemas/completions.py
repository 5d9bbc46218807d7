"""Requests to ``/v1/completions``."""

from typing import Annotated

from pydantic import Field

from serving.http.schemas.common import MOST_CHOICES, GenerationRequest, TopLogprobs

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdList = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """Texts or token ids to go on with."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
        | TokenIdList
        | Annotated[list[TokenIdList], Field(min_length=1, max_length=MOST_CHOICES)]
    )
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        prompts: list[str | list[int]] = []
        token_ids: list[int] = []
        for part in self.prompt:
            if isinstance(part, int):
                token_ids.append(part)
            else:
                prompts.append(part)
        return prompts or [token_ids]
