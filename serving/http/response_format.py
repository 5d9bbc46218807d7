"""What a chat's answer is held to: a response format, or the call of a tool."""

from typing import Any

from serving.constraints import Constraint
from serving.errors import UserError
from serving.http.errors import invalid, unsupported
from serving.http.request_checks import check_schema
from serving.http.request_limits import RequestLimits
from serving.http.schemas.chat import ChatRequest, JsonSchemaFormat, TextFormat
from serving.http.tool_prompts import ToolUse


def constraint_of(
    body: ChatRequest, tools: ToolUse | None, limits: RequestLimits
) -> Constraint | None:
    """The constraint that a request asks for. Raises ApiError for one that can't be had."""
    wanted = body.response_format
    if wanted is None or isinstance(wanted, TextFormat):
        return _constraint(tools.schema, limits, "tools") if tools and tools.schema else None
    if tools is not None:
        raise unsupported(
            "response_format", "'response_format' must be 'text' where tools may be called."
        )
    if isinstance(wanted, JsonSchemaFormat):
        param = "response_format.json_schema.schema"
        return _constraint(wanted.json_schema.json_schema, limits, param)
    return Constraint.json_object()


def constraint_param(body: ChatRequest, tools: ToolUse | None) -> str | None:
    """The parameter that a constraint comes from, if there is one."""
    if tools is not None and tools.schema is not None:
        return "tools"
    is_text = body.response_format is None or isinstance(body.response_format, TextFormat)
    return None if is_text else "response_format"


def _constraint(schema: dict[str, Any], limits: RequestLimits, param: str) -> Constraint:
    check_schema(schema, limits, param)
    try:
        return Constraint.json_schema(schema)
    except UserError as error:
        raise invalid(param, str(error)) from error
