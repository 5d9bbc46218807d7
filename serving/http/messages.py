"""Messages as OpenAI's API has them, made into those that chat templates know."""

import json
from typing import Any

from serving.chat import Message
from serving.http.errors import invalid
from serving.http.schemas.chat import AssistantMessage, ChatRequest, Content, ToolCall, ToolMessage

# Templates know the older word only.
_ROLES = {"developer": "system"}


def template_messages(body: ChatRequest) -> list[Message]:
    """The conversation for a chat template."""
    messages = []
    for at, message in enumerate(body.messages):
        role = _ROLES.get(message.role, message.role)
        made: Message = {"role": role, "content": _text(message.content)}
        if isinstance(message, ToolMessage):
            made["tool_call_id"] = message.tool_call_id
        elif message.name is not None:
            made["name"] = message.name
        if isinstance(message, AssistantMessage) and message.tool_calls:
            path = f"messages[{at}].tool_calls"
            made["tool_calls"] = [
                _tool_call(call, f"{path}[{number}]")
                for number, call in enumerate(message.tool_calls)
            ]
        messages.append(made)
    return messages


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _tool_call(call: ToolCall, path: str) -> dict[str, Any]:
    """A call for a template, which writes the arguments' JSON itself."""
    param = f"{path}.function.arguments"
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise invalid(param, f"'{param}' must be a JSON object in a string.") from error
    if not isinstance(arguments, dict):
        raise invalid(param, f"'{param}' must be a JSON object in a string.")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
