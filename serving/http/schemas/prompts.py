"""One or several prompts, as texts or as token ids."""

from typing import Annotated

from pydantic import Field

from serving.http.schemas.common import MOST_CHOICES

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdList = Annotated[list[TokenId], Field(min_length=1)]

Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
    | TokenIdList
    | Annotated[list[TokenIdList], Field(min_length=1, max_length=MOST_CHOICES)]
)


# What OpenAI's API takes of inputs to embed.
MOST_INPUTS = 2048
Inputs = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
    | TokenIdList
    | Annotated[list[TokenIdList], Field(min_length=1, max_length=MOST_INPUTS)]
)


def prompts_of(given: Prompts | Inputs) -> list[str | list[int]]:
    """The prompts, each a text or token ids."""
    if isinstance(given, str):
        return [given]
    prompts: list[str | list[int]] = []
    token_ids: list[int] = []
    for part in given:
        if isinstance(part, int):
            token_ids.append(part)
        else:
            prompts.append(part)
    return prompts or [token_ids]
