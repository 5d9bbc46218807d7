"""Asking the models that a server has: as commands for a shell, and for an answer."""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from scripts.triton_server.triton_api import input_names, post, ready_models
from serving.errors import UserError

_MAX_TOKENS = 48


def client_commands(url: str) -> Iterator[str]:
    """For each model that takes a text: its answer at once, and streamed if it can be."""
    for model in ready_models(url):
        inputs = input_names(url, model)
        if "text_input" in inputs:
            body = _body("Once upon a time", inputs)
            streams = body.pop("stream", False)
            yield _curl(f"{url}/v2/models/{model}/generate", body)
            if streams:
                address = f"{url}/v2/models/{model}/generate_stream"
                yield _curl(address, body | {"stream": True}, "--no-buffer")


def answer(url: str, text: str) -> Iterator[str]:
    """What the first model that takes a text answers, in the parts in which it comes.

    Raises UserError if there is none, or for an error in place of the answer.
    """
    for model in ready_models(url):
        inputs = input_names(url, model)
        if "text_input" in inputs:
            address = f"{url}/v2/models/{model}/generate_stream"
            break
    else:
        raise UserError("No model takes a text_input: leave --ask out.")
    for line in post(address, _body(text, inputs)):
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise UserError(f"Triton answers with an error: {event['error']}")
            yield event["text_output"]


def _body(text: str, inputs: set[str]) -> dict[str, Any]:
    optional = {"max_tokens": _MAX_TOKENS, "stream": True}
    return {"text_input": text} | {name: optional[name] for name in optional if name in inputs}


def _curl(url: str, body: dict[str, Any], *options: str) -> str:
    return shlex.join(["curl", *options, url, "--data", json.dumps(body)])
