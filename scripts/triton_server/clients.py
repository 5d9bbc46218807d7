"""Asking the models that a server has: as commands for a shell, and for an answer."""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from scripts.triton_server.triton_api import model_config, post, ready_models
from serving.errors import UserError

_MAX_TOKENS = 48
_TEXT = "Once upon a time"
_QUESTION, _CONTEXT = "Who lived there?", "Once upon a time, a king lived there."


def client_commands(url: str) -> Iterator[str]:
    """For each model that takes a text: its answer at once, and streamed if it can be."""
    for model in ready_models(url):
        body = _body(_TEXT, model_config(url, model))
        if body:
            streams = body.pop("stream", False)
            yield _curl(f"{url}/v2/models/{model}/generate", body)
            if streams:
                address = f"{url}/v2/models/{model}/generate_stream"
                yield _curl(address, body | {"stream": True}, "--no-buffer")


def answer(url: str, text: str) -> Iterator[str]:
    """What the first model that takes a text answers, in the parts in which it comes.

    That of an encoder is its outputs, as JSON. Raises UserError if there is none, or for an error
    in place of the answer.
    """
    for model in ready_models(url):
        body = _body(text, model_config(url, model))
        if body and "question" not in body:
            break
    else:
        raise UserError("No model takes a text_input or a text: leave --ask out.")
    for line in post(f"{url}/v2/models/{model}/generate_stream", body):
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise UserError(f"Triton answers with an error: {event['error']}")
            yield event["text_output"] if "text_output" in event else json.dumps(event)


def _body(text: str, config: dict[str, Any]) -> dict[str, Any]:
    """A request about a text to a model of this configuration; empty where it takes none."""
    inputs = {tensor["name"] for tensor in config["input"]}
    if "text_input" in inputs:
        optional = {"max_tokens": _MAX_TOKENS, "stream": True}
        return {"text_input": text} | {name: optional[name] for name in optional if name in inputs}
    if {"question", "context"} <= inputs:
        return {"question": _QUESTION, "context": _CONTEXT}
    if "text" not in inputs:
        return {}
    mask = config.get("parameters", {}).get("mask_token", {}).get("string_value", "")
    return {"text": text if mask in text else f"{text} {mask}"}


def _curl(url: str, body: dict[str, Any], *options: str) -> str:
    return shlex.join(["curl", *options, url, "--data", json.dumps(body)])
