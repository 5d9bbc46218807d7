"""Questions to a server over HTTP, see Triton's "Model Repository" and "Model Configuration"."""

import json
import urllib.request
from http.client import HTTPResponse
from typing import Any, cast
from urllib.error import HTTPError

from serving.errors import UserError

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
    with post(f"{url}/v2/repository/index", {"ready": True}) as response:
        return sorted({model["name"] for model in json.load(response)})


def model_config(url: str, model: str) -> dict[str, Any]:
    """A model's config.pbtxt, as JSON."""
    with _opener.open(f"{url}/v2/models/{model}/config", timeout=_SECONDS) as response:
        return cast(dict[str, Any], json.load(response))


def post(url: str, body: dict[str, Any]) -> HTTPResponse:
    """Send JSON; the response's lines come as the server sends them.

    Raises UserError if the server answers with an error.
    """
    try:
        return cast(HTTPResponse, _opener.open(url, json.dumps(body).encode()))
    except HTTPError as error:
        raise UserError(f"Triton answers with an error: {json.load(error)['error']}") from error
