"""API keys at a server: who may do what, and how much of it."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serving.http.keys import KeyLimits, KeyStore, Scope, create_key
from tests.serving.http.running import Running

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 8}


@pytest.fixture
def key_file(tiny: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's key file for this test, with one key."""
    path = tmp_path / "keys.json"
    create_key(path, "first", ("generate",))
    monkeypatch.setattr(tiny.state, "keys", KeyStore(path, None))
    return path


def ask(server: Running, secret: str | None, path: str = "/v1/completions") -> httpx.Response:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    with server.http as client:
        if path == "/v1/completions":
            return client.post(path, json=BODY, headers=headers)
        return client.get(path, headers=headers)


def code_of(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()["error"]["code"]


def new_key(path: Path, name: str, *scopes: Scope, **options: Any) -> str:
    return create_key(path, name, scopes or ("generate",), **options)


def test_without_a_valid_key_there_is_a_401(tiny: Running, key_file: Path) -> None:
    for secret in (None, "ellm-wrong", "x y"):
        for path in ("/v1/completions", "/v1/models", "/v1/models/tiny", "/metrics"):
            response = ask(tiny, secret, path)
            assert code_of(response, 401) == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        tiny.openai.completions.create(**BODY)
    for path in ("/health", "/ready"):
        assert ask(tiny, None, path).status_code == 200
    assert ask(tiny, new_key(key_file, "second")).status_code == 200


def test_scopes_and_models_are_kept(tiny: Running, key_file: Path) -> None:
    metrics, generate = new_key(key_file, "m", "metrics"), new_key(key_file, "g", "generate")
    assert ask(tiny, metrics, "/metrics").status_code == 200
    assert code_of(ask(tiny, metrics), 403) == "not_allowed"
    assert code_of(ask(tiny, generate, "/metrics"), 403) == "not_allowed"
    other = new_key(key_file, "o", models=("other",))
    assert code_of(ask(tiny, other), 403) == "not_allowed"
    assert code_of(ask(tiny, other, "/v1/models/tiny"), 403) == "not_allowed"
    assert ask(tiny, other, "/v1/models").json()["data"] == []
    assert len(ask(tiny, generate, "/v1/models").json()["data"]) == 1


def test_rates_are_limited_and_reported(tiny: Running, key_file: Path) -> None:
    secret = new_key(key_file, "r", limits=KeyLimits(requests_per_minute=2, tokens_per_minute=1000))
    first = ask(tiny, secret)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    ask(tiny, secret)
    refused = ask(tiny, secret)
    assert code_of(refused, 429) == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 30


def test_tokens_that_were_not_generated_are_given_back(tiny: Running, key_file: Path) -> None:
    secret = new_key(key_file, "t", limits=KeyLimits(tokens_per_minute=500))
    body = {**BODY, "max_tokens": 400, "stop": list("abcdefghijklmnop")}
    headers = {"authorization": f"Bearer {secret}"}
    with tiny.http as client:
        for _ in range(5):
            assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
        too_many = client.post("/v1/completions", json={**body, "n": 2}, headers=headers)
    assert code_of(too_many, 400) == "too_many_tokens"


def test_a_stream_counts_until_it_ends(tiny: Running, key_file: Path) -> None:
    secret = new_key(key_file, "c", limits=KeyLimits(concurrent_requests=1))
    headers = {"authorization": f"Bearer {secret}"}
    body = {**BODY, "max_tokens": 900, "stream": True, "ignore_eos": True}
    with tiny.http as client:
        with client.stream("POST", "/v1/completions", json=body, headers=headers) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert code_of(ask(tiny, secret), 429) == "rate_limit_exceeded"
        for _ in range(200):
            if (answer := ask(tiny, secret)).status_code == 200:
                break
        assert answer.status_code == 200
