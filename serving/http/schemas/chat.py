"""Requests to ``/v1/chat/completions``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serving.http.schemas.common import GenerationRequest, Ignored, Positive, Schema, TopLogprobs

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}\z")]


class TextPart(Schema):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class InstructionMessage(Schema):
    """What holds for the whole conversation; "developer" is OpenAI's newer word for "system"."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Schema):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(Schema):
    """A function's name and its arguments, an object in JSON."""

    name: FunctionName
    arguments: str


class ToolCall(Schema):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None


class AssistantMessage(Schema):
    """What the model said."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    audio: None = None
    function_call: None = None
    annotations: Ignored


class ToolMessage(Schema):
    """What a called function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[
    InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionDefinition(Schema):
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Schema):
    """A tool: functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Schema):
    """The function that must be called."""

    name: FunctionName


class NamedTool(Schema):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Schema):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Schema):
    """A JSON schema with a name, which the model isn't told."""

    name: FunctionName
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Schema):
    """JSON that is valid under a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(GenerationRequest):
    """A conversation to go on with."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    metadata: Ignored
    prompt_cache_key: Ignored
    safety_identifier: Ignored
    service_tier: Ignored
    store: Ignored
