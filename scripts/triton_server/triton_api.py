"""Questions to a server over HTTP, see Triton's "Model Repository" and "Model Configuration"."""

import json
import urllib.request
from typing import Any

_SECONDS = 10

# Whatever the environment says: the server is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_ready(url: str) -> bool:
    """Whether it answers, and all models can be asked."""
    try:
        with _opener.open(f"{url}/v2/health/ready", timeout=_SECONDS):
            return True
    except OSError:  # a status that isn't 200, too
        return False


def ready_models(url: str) -> list[str]:
    """The names of the models that can be asked."""
    index = _ask(f"{url}/v2/repository/index", {"ready": True})
    return sorted({model["name"] for model in index})


def input_names(url: str, model: str) -> set[str]:
    """The names of a model's input tensors."""
    config = _ask(f"{url}/v2/models/{model}/config")
    return {tensor["name"] for tensor in config["input"]}


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with _opener.open(url, data, timeout=_SECONDS) as response:
        return json.load(response)
