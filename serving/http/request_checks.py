"""Whether a request stays within the server's limits and fits into the model's context."""

import json
from typing import Any

from serving.http.errors import invalid
from serving.http.generating import Generation
from serving.http.request_limits import RequestLimits
from serving.http.schemas.common import GenerationRequest


def check_body(body: GenerationRequest, limits: RequestLimits) -> None:
    """Raise ApiError if a list or a text of the request is too long."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    longest = max(map(len, stops), default=0)
    check_count("stop", len(stops), limits.stop_strings, "stop strings")
    check_count("stop", longest, limits.stop_characters, "characters in a stop string")
    check_count("logit_bias", len(body.logit_bias or ()), limits.logit_bias_entries, "entries")


def check_schema(schema: Any, limits: RequestLimits, param: str) -> None:
    """Raise ApiError if a JSON schema is too long."""
    size = len(json.dumps(schema).encode())
    check_count(param, size, limits.schema_bytes, "bytes of JSON schema")


def check_generation(generation: Generation, limits: RequestLimits, param: str) -> None:
    """Raise ApiError if there are too many choices, or a text is too long.

    ``param`` is what the prompts come from.
    """
    check_count("n", generation.choices, limits.choices, "choices")
    longest = max(map(len, generation.prompts))
    if limits.prompt_tokens is not None:
        check_count(param, longest, limits.prompt_tokens, "tokens")
    most = generation.options.get("max_new_tokens")
    if limits.new_tokens is not None:
        check_count("max_tokens", most or 0, limits.new_tokens, "new tokens")
    _check_context(generation, longest, param)


def _check_context(generation: Generation, prompt_tokens: int, param: str) -> None:
    options, capacity = generation.options, generation.model.capacity
    overflow = options.get("context_overflow", "refuse")
    most, least = options.get("max_new_tokens"), options.get("min_new_tokens", 0)
    if overflow == "slide":
        if most is None:
            raise invalid(
                "context_overflow",
                "A text whose context slides has no end of its own: give max_tokens as well.",
            )
        return
    new = max(most or 1, least)
    asked = new + (prompt_tokens if overflow == "refuse" else 1)
    if asked > capacity:
        raise invalid(
            param,
            f"This model's maximum context length is {capacity} tokens. However, you requested "
            f"{prompt_tokens + new} tokens ({prompt_tokens} in the {param}, {new} in the "
            f"completion). Please reduce the length of the {param} or completion.",
            "context_length_exceeded",
        )


def check_count(param: str, count: int, most: int, what: str) -> None:
    """Raise ApiError if a request asks for more than ``most`` of something."""
    if count > most:
        raise invalid(param, f"'{param}' asks for {count} {what}, but at most {most} are allowed.")
