"""What the model is told of tools, and what it is held to where it must call one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.http.errors import invalid, unsupported
from serving.http.schemas.chat import ChatRequest, FunctionDefinition, NamedTool


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request: what the template gets, which names count, how many calls may be.

    ``schema`` is the JSON schema of a call if the model must make one.
    """

    tools: Sequence[dict[str, Any]]
    names: frozenset[str]
    most: int | None = None
    schema: dict[str, Any] | None = None


def tool_use(body: ChatRequest) -> ToolUse | None:
    """What a request's tools ask for; None if there are none to be called."""
    if body.tools is None:
        for param in ("tool_choice", "parallel_tool_calls"):
            if getattr(body, param) not in (None, "none", "auto", True):
                raise invalid(param, f"'{param}' is only allowed when 'tools' are specified.")
        return None
    if body.tool_choice == "none":
        return None
    functions = [tool.function for tool in body.tools]
    schema = None
    if body.tool_choice == "required":
        schema = _call_schema(functions)
    elif isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        functions = [function for function in functions if function.name == name]
        if not functions:
            raise invalid("tool_choice", f"Tool choice '{name}' not found in 'tools' parameter.")
        schema = _call_schema(functions)
    return ToolUse(
        tools=[tool.model_dump(exclude_none=True) for tool in body.tools],
        names=frozenset(function.name for function in functions),
        most=1 if body.parallel_tool_calls is False else None,
        schema=schema,
    )


def _call_schema(functions: Sequence[FunctionDefinition]) -> dict[str, Any]:
    """A call of one of the functions, name first, as ToolCallParser reads it.

    References go by paths from the root, so definitions move there.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for function in functions:
        parameters = dict(function.parameters or {"type": "object"})
        for name, definition in parameters.pop("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                raise unsupported(
                    "tools", f"Two tools define '{name}' differently in their '$defs': rename one."
                )
        properties = {"name": {"const": function.name}, "arguments": parameters}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema | {"$defs": definitions} if definitions else schema
