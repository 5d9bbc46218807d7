"""Parameters that completions and chats share: OpenAI's, and extensions of this server."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.sampling import MAX_LOGPROBS

# A context that slides has no end of its own: some limit keeps a request from asking for years.
MOST_TOKENS = 1_000_000
MOST_CHOICES = 128
MOST_STOPS = 16

Positive = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1)]
# Plain numbers, as OpenAI's API writes them: no sign, no spaces.
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}\z")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Ignored = Annotated[Any, Field(default=None, description="Accepted, and of no effect here.")]


class Schema(BaseModel):
    """A part of a request: types are as written (no "1" for 1), and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Schema):
    """``include_usage`` adds a last chunk with the numbers of tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(Schema):
    """What both kinds of requests may say of how tokens are chosen and when they end."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Bias] | None = None
    user: str | None = None

    # Extensions.
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    speculation: Literal["prompt-lookup", "draft"] | None = None
    context_overflow: Literal["refuse", "truncate", "slide"] | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)
