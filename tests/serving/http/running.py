"""A server over a bundle, on a thread of the test's process."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from serving.http.app import create_app
from serving.http.keys import KeyStore
from serving.http.listening import check_listening
from serving.http.request_limits import RequestLimits
from serving.http.served_model import open_models
from serving.http.state import ServerState
from tests.serving.http.live_server import serving_at

SECONDS = 30
# Many workers, each of which imports ONNX Runtime, on few cores.
STARTING_SECONDS = 120


@dataclass(frozen=True)
class Running:
    """A server that is ready; ``state`` is its own, which its thread goes on to use."""

    url: str
    state: ServerState

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS)

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=SECONDS
        )

    def post(self, path: str, **body: Any) -> httpx.Response:
        # In ASCII, for bodies that no UTF-8 can have.
        content, headers = json.dumps(body), {"content-type": "application/json"}
        with self.http as client:
            return client.post(path, content=content, headers=headers)


@contextmanager
def running(
    bundles: dict[str, Path],
    *,
    limits: RequestLimits | None = None,
    silent_seconds: float = 120.0,
    **loading: Any,
) -> Iterator[Running]:
    """Serve bundles, each with two slots, one thread and a queue of eight."""
    loading = {"slots": 2, "capacity": 1024, "prefix_rows": 2, "threads": 1} | loading
    keys = KeyStore(None, None)
    models = open_models(bundles, loading, queue_limit=8, silent_seconds=silent_seconds)
    state = ServerState(models, limits or RequestLimits(), keys)
    options = check_listening("127.0.0.1", 0, keys=()).uvicorn_options(state.limits)
    with serving_at(create_app(state), options) as port:
        until(lambda: state.is_ready or state.failure is not None, STARTING_SECONDS)
        assert state.failure is None, state.failure
        yield Running(f"http://127.0.0.1:{port}", state)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait for what a thread or a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)
