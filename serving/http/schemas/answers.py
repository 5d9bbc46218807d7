"""The documents that endpoints answer with.

They are dictionaries: nothing is validated on the way out. OpenAPI describes them by these types.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(TypedDict):
    """Of the prompts' tokens, so many were computed for earlier requests."""

    cached_tokens: int


class Usage(TypedDict):
    """Numbers of tokens: of the prompts, and of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLogProb(TypedDict):
    """A token as text and as UTF-8 (of which it may have a part), and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class PositionLogProbs(TokenLogProb):
    """A chosen token and the likeliest ones at its place."""

    top_logprobs: list[TokenLogProb]


class ChatLogProbs(TypedDict):
    """Log-probabilities of a chat's answer, with an entry a token."""

    content: list[PositionLogProbs]
    refusal: None


class CompletionLogProbs(TypedDict):
    """Log-probabilities of a completion, each list with an entry a token.

    ``text_offset`` says where in the text a token begins, in characters.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One of the texts."""

    index: int
    text: str
    logprobs: CompletionLogProbs | None
    finish_reason: FinishReason | None


class Completion(TypedDict):
    """The answer of ``/v1/completions``; ``created`` is in seconds since 1970."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CalledFunction(TypedDict):
    """A function's name and its arguments, a JSON text (unless the answer was cut short)."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that the model makes; its answer bears this ``id``."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """What the model says or calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogProbs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    """The answer of ``/v1/chat/completions``; ``created`` is in seconds since 1970."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Model(TypedDict):
    """A model; ``created`` is in seconds since 1970, ``max_model_len`` in tokens, once loaded.

    An encoder-decoder reads sources of ``max_source_len`` tokens. One without a chat template only
    takes completions. ``task`` is "text-generation" or an encoder's.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    max_source_len: int | None
    has_chat_template: bool
    task: str


class ModelList(TypedDict):
    """The models of this server."""

    object: Literal["list"]
    data: list[Model]


class TextToText(TypedDict):
    """An output, under the names of both tasks."""

    translation_text: str
    summary_text: str


class Status(TypedDict):
    """Whether the server is well."""

    status: str


class Error(TypedDict):
    """What is wrong: for people, by its type, by its parameter, and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(TypedDict):
    """The answer to a request that failed."""

    error: Error


class Embedding(TypedDict):
    """A vector, as numbers or as base64 of little-endian float32.

    Where an encoder was told what becomes of long inputs, it says in how many ``segments`` this one
    ran, and whether it was ``truncated``.
    """

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    segments: NotRequired[int]
    truncated: NotRequired[bool]


class EmbeddingUsage(TypedDict):
    """Numbers of tokens of all inputs together."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(TypedDict):
    """The vectors of a request, in the order of its inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
