"""How to ask the models that a server has, as commands for a shell."""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from scripts.triton_server.triton_api import input_names, ready_models


def client_commands(url: str) -> Iterator[str]:
    """For each model that is ready and takes a text: its answer at once, and streamed."""
    for model in ready_models(url):
        inputs = input_names(url, model)
        if "text_input" in inputs:
            body: dict[str, Any] = {"text_input": "Once upon a time"}
            if "max_tokens" in inputs:
                body["max_tokens"] = 48
            yield _curl(f"{url}/v2/models/{model}/generate", body)
            if "stream" in inputs:
                streamed = body | {"stream": True}
                yield _curl(f"{url}/v2/models/{model}/generate_stream", streamed, "--no-buffer")


def _curl(url: str, body: dict[str, Any], *options: str) -> str:
    return shlex.join(["curl", *options, url, "--data", json.dumps(body)])
