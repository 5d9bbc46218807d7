"""Each kind of error: its status, its shape, and the parameter that it names."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from serving.http.request_limits import RequestLimits
from serving.http.served_model import ServedModel
from tests.serving.http.running import Running

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document = response.json()
    assert list(document) == ["error"]
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4000}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 1100}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 300}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"32": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"context_overflow": "slide"}, "context_overflow"),
        ({"speculation": "draft"}, "speculation"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"temperatur": 1}, "temperatur"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ],
)
def test_a_chat_that_is_wrong_names_the_parameter(
    tiny: Running, change: dict[str, Any], param: str
) -> None:
    error = error_of(tiny.post("/v1/chat/completions", **{**CHAT, **change}), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [32]}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a"] * 17}, "n"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"tools": []}, "tools"),
    ],
)
def test_a_completion_that_is_wrong_names_the_parameter(
    tiny: Running, change: dict[str, Any], param: str
) -> None:
    error = error_of(tiny.post("/v1/completions", **{**TEXT, **change}), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_a_body_that_is_no_request_is_a_400(tiny: Running, body: bytes) -> None:
    with tiny.http as client:
        headers = {"content-type": "application/json"}
        response = client.post("/v1/completions", content=body, headers=headers)
    assert error_of(response, 400)["type"] == "invalid_request_error"


def test_a_missing_parameter_and_a_long_context_have_their_codes(tiny: Running) -> None:
    missing = error_of(tiny.post("/v1/completions", prompt="x"), 400)
    assert (missing["param"], missing["code"]) == ("model", "missing_required_parameter")
    long = error_of(tiny.post("/v1/completions", **{**TEXT, "prompt": "a" * 2000}), 400)
    assert (long["param"], long["code"]) == ("prompt", "context_length_exceeded")


def test_what_is_not_there_is_a_404_and_a_wrong_method_a_405(tiny: Running) -> None:
    error = error_of(tiny.post("/v1/completions", **{**TEXT, "model": "other/\ud800"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    with tiny.http as client:
        assert error_of(client.get("/v1/models/a/b"), 404)["code"] == "model_not_found"
        error_of(client.get("/v1/nothing"), 404)
        response = client.get("/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"
    with pytest.raises(openai.NotFoundError):
        tiny.openai.models.retrieve("other")


def test_a_body_that_is_too_large_is_a_413(tiny: Running) -> None:
    response = tiny.post("/v1/completions", **{**TEXT, "prompt": "a" * (10 << 20)})
    assert error_of(response, 413)["type"] == "invalid_request_error"


def test_a_full_queue_is_a_429_that_says_when_to_come_back(tiny: Running) -> None:
    many = {**TEXT, "n": 16, "max_tokens": 500}
    for body in (many, {**many, "stream": True}):
        response = tiny.post("/v1/completions", **body)
        assert error_of(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        tiny.openai.completions.create(**many)


@pytest.fixture
def short_time(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = RequestLimits(request_seconds=0.1)
    monkeypatch.setattr(tiny.state, "limits", limits)


LONG = {**TEXT, "max_tokens": 100_000, "context_overflow": "slide", "ignore_eos": True}


@pytest.mark.usefixtures("short_time")
def test_a_deadline_is_a_504_or_the_last_event_of_a_stream(tiny: Running) -> None:
    error = error_of(tiny.post("/v1/completions", **LONG), 504)
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    response = tiny.post("/v1/completions", **LONG, stream=True)
    assert response.status_code == 200
    *_, last = response.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"] == error
    with pytest.raises(openai.APIError, match="wasn't finished in its time"):
        list(
            tiny.openai.completions.create(
                model="tiny",
                prompt="x",
                max_tokens=100_000,
                stream=True,
                extra_body={"context_overflow": "slide", "ignore_eos": True},
            )
        )


def test_an_error_of_the_program_is_a_500(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> Callable[[], None]:
        raise RuntimeError("secret")

    monkeypatch.setattr(ServedModel, "encode", fail)
    error = error_of(tiny.post("/v1/completions", **TEXT), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
