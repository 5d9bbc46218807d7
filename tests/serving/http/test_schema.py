"""Schemathesis asks what the OpenAPI description allows, and what it doesn't.

``REQUESTS=2000 pytest tests/serving/http/test_schema.py`` asks more.
"""

import os
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
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


@pytest.fixture
def small_requests(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for takes little time; what would take more is refused."""
    limits = RequestLimits(new_tokens=20, choices=2, request_seconds=1)
    monkeypatch.setattr(tiny.state, "limits", limits)


@pytest.mark.usefixtures("small_requests")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    ("method", "path", "share"),
    [
        ("POST", "/v1/chat/completions", 3),
        ("POST", "/v1/completions", 3),
        ("GET", "/v1/models/{model}", 1),
    ],
)
def test_what_is_asked_is_answered_as_described(
    tiny: Running, method: str, path: str, share: int, mode: GenerationMode
) -> None:
    """A valid request asks for the model that there is, so that most get as far as the worker."""
    schema = schemathesis.openapi.from_url(f"{tiny.url}/openapi.json")
    statuses = Counter[int]()

    @settings(
        max_examples=REQUESTS * share // 14,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body["model"] = "tiny"
        response = case.call(timeout=20)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    ask()
    assert sum(statuses.values()) >= REQUESTS * share // 14
    if mode is GenerationMode.POSITIVE and method == "POST":
        assert statuses[200] > 0, statuses
