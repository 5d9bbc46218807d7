"""Schemathesis asks what the OpenAPI description allows, and what it doesn't.

``REQUESTS=2000 pytest tests/serving/http/test_schema.py`` asks more.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from serving.http.request_limits import RequestLimits
from tests.serving.http.running import Running

REQUESTS = int(os.environ.get("REQUESTS", "200"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def make_modest(body: dict[str, Any]) -> None:
    """Change what only this server or this model refuses."""
    for name in ("best_of", "logit_bias", "max_completion_tokens", "min_tokens", "n", "suffix"):
        body.pop(name, None)
    for name in ("speculation", "tools", "tool_choice", "response_format", "top_logprobs"):
        body.pop(name, None)
    for name in ("num_beams", "length_penalty", "early_stopping"):
        body.pop(name, None)
    for name in ("source_language", "target_language"):
        body.pop(name, None)
    body["max_tokens"] = 8
    if "prompt" in body:
        body |= {"prompt": "hello", "echo": False}


@pytest.fixture
def small_requests(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for takes little time; what would take more is refused."""
    limits = RequestLimits(new_tokens=20, choices=2)
    monkeypatch.setattr(tiny.state, "limits", limits)


@pytest.mark.usefixtures("small_requests")
@pytest.mark.parametrize(
    ("method", "path", "mode", "share"),
    [
        ("POST", "/v1/chat/completions", GenerationMode.POSITIVE, 0.2),
        ("POST", "/v1/chat/completions", GenerationMode.NEGATIVE, 0.25),
        ("POST", "/v1/completions", GenerationMode.POSITIVE, 0.25),
        ("POST", "/v1/completions", GenerationMode.NEGATIVE, 0.25),
        ("GET", "/v1/models/{model}", GenerationMode.POSITIVE, 0.05),
    ],
)
def test_what_is_asked_is_answered_as_described(
    tiny: Running, method: str, path: str, mode: GenerationMode, share: float
) -> None:
    """Requests ask for the model that there is, so that valid ones get as far as the worker."""

    def change(case: schemathesis.Case, is_modest: bool) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"
            case.body.setdefault("max_tokens", 8)
            if mode is GenerationMode.POSITIVE and is_modest:
                make_modest(case.body)

    statuses = ask(tiny, method, path, mode, int(REQUESTS * share), change)
    if mode is GenerationMode.POSITIVE and method == "POST":
        assert statuses[200] > sum(statuses.values()) / 5, statuses


@pytest.mark.parametrize("path", ["/v1/embeddings", "/models/{model}"])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_encoders_are_asked_is_answered_as_described(
    embedder: Running, path: str, mode: GenerationMode
) -> None:
    def change(case: schemathesis.Case, is_modest: bool) -> None:
        if "model" in case.path_parameters:
            case.path_parameters["model"] = "entities" if is_modest else "sentences"
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "sentences"
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE and is_modest:
            wanted = {"model", "input", "inputs", "encoding_format"}
            for name in case.body.keys() - wanted:
                del case.body[name]
            case.body |= {name: "some text" for name in ("input", "inputs") if name in case.body}

    statuses = ask(embedder, "POST", path, mode, int(REQUESTS * 0.15), change)
    if mode is GenerationMode.POSITIVE:
        assert statuses[200], statuses


def ask(
    server: Running,
    method: str,
    path: str,
    mode: GenerationMode,
    count: int,
    change: Callable[[schemathesis.Case, bool], None],
) -> Counter[int]:
    """Ask so many requests, each changed first; returns how often each status came."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses = Counter[int]()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(schema[path][method].as_strategy(generation_mode=mode), booleans())
    def ask_one(case: schemathesis.Case, is_modest: bool) -> None:
        change(case, is_modest)
        response = case.call(timeout=20)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    ask_one()
    assert sum(statuses.values()) >= count
    return statuses
