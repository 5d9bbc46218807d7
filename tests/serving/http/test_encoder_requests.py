"""Requests to encoders: embeddings, limits, clients that leave, workers that die."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from click.testing import CliRunner

import serving
from serving import cli
from serving.http.keys import KeyLimits, KeyStore, Scope, create_key
from serving.http.request_limits import RequestLimits
from serving.worker.messages import Load
from tests.serving.http.running import Running, until

Encoders = Callable[[str], Path]
TEXTS = ["def main():", "x", "Return a partial function application.", "import os"]
LONG = "import os " * 40


def embed(server: Running, given: Any, **extra: Any) -> Any:
    return server.openai.embeddings.create(model="sentences", input=given, **extra)


def vectors(answer: Any) -> Any:
    return np.array([each.embedding for each in answer.data])


def load(server: Running) -> Load:
    served = server.state.models.get("sentences")
    assert served is not None
    return served.worker.load


def in_flight(server: Running) -> int:
    served = server.state.models.get("sentences")
    assert served is not None
    return served.worker.in_flight


@contextmanager
def stopped(server: Running) -> Iterator[None]:
    """While the worker does nothing, so that what is sent waits."""
    served = server.state.models.get("sentences")
    assert served is not None
    assert served.worker.process_id is not None
    os.kill(served.worker.process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        if served.worker.process_id is not None:  # it is alive
            os.kill(served.worker.process_id, signal.SIGCONT)


def test_embeddings_are_those_of_the_model(embedder: Running, encoder: Encoders) -> None:
    with serving.load_encoder(encoder("sentences") / "bundle", threads=1) as model:
        wanted = model.embed(TEXTS)
        cut = model.embed(LONG, context_overflow="truncate")
        whole = model.embed(LONG, context_overflow="segments", overlap=4)
        ids = model.texts.encode(TEXTS[:2], "refuse")
    answer = embed(embedder, TEXTS)  # asks for base64
    np.testing.assert_allclose(vectors(answer), wanted.vectors, atol=1e-6)
    assert [each.index for each in answer.data] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(wanted.prompt_tokens)
    numbers = embed(embedder, TEXTS[0], encoding_format="float", dimensions=32)
    np.testing.assert_allclose(vectors(numbers), wanted.vectors[:1], atol=1e-6)
    as_ids = [list(text.segments[0].tokens.ids) for text in ids]
    np.testing.assert_allclose(vectors(embed(embedder, as_ids)), wanted.vectors[:2], atol=1e-6)
    np.testing.assert_allclose(vectors(embed(embedder, as_ids[0])), wanted.vectors[:1], atol=1e-6)
    overflows: list[tuple[Any, dict[str, Any]]] = [
        (cut, {"context_overflow": "truncate"}),
        (whole, {"context_overflow": "segments", "overlap": 4}),
    ]
    for expected, options in overflows:
        answer = embed(embedder, LONG, extra_body=options)
        np.testing.assert_allclose(vectors(answer), expected.vectors, atol=1e-6)
        assert answer.usage.prompt_tokens == expected.prompt_tokens[0]
        assert answer.data[0].segments == expected.segments[0]
        assert answer.data[0].truncated == expected.truncated[0]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": LONG}, "input", "truncated or split into segments"),
        ({"input": ""}, "input", "is empty"),
        ({"input": [512]}, "input", "not one of 512"),
        ({"input": [5] * 33}, "input", "33 token ids"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": "a", "dimensions": 8}, "dimensions", "own dimensions"),
        ({"input": "a", "pooling": "last"}, "pooling", r"checkpoint says \(cls\)"),
        ({"input": "a", "context_overflow": "segments", "overlap": 20}, "input", "0 to 15"),
    ],
)
def test_bad_input_names_the_parameter(
    embedder: Running, body: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        embedder.openai.post(
            "/embeddings", body={"model": "sentences", **body}, cast_to=httpx.Response
        )
    assert caught.value.param == param


def test_what_waits_is_one_batch_and_no_more_than_the_queue_holds(embedder: Running) -> None:
    before = load(embedder)
    with ThreadPoolExecutor(8) as threads:
        with stopped(embedder):
            asked = [threads.submit(embed, embedder, TEXTS[i % 4]) for i in range(8)]
            until(lambda: in_flight(embedder) == 8)
            with pytest.raises(openai.RateLimitError, match="8 requests wait"):
                embed(embedder, "x")
        answers = [future.result() for future in asked]
    after = load(embedder)
    tokens = sum(answer.usage.prompt_tokens for answer in answers)
    assert after.batch_tokens - before.batch_tokens == tokens
    # The worker may have read the first ones before the others were there.
    assert after.batches - before.batches <= 4


def test_what_a_client_has_left_is_not_run(embedder: Running) -> None:
    before = load(embedder).batch_tokens
    with stopped(embedder):
        with pytest.raises(openai.APITimeoutError):
            embed(embedder, TEXTS * 100, timeout=0.5)
        until(lambda: in_flight(embedder) == 0)
    tokens = embed(embedder, "x").usage.prompt_tokens
    assert load(embedder).batch_tokens - before == tokens


def test_a_deadline_that_has_passed_is_504(
    embedder: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder.state, "limits", RequestLimits(request_seconds=1e-6))
    before = load(embedder).batch_tokens
    answer = embedder.post("/v1/embeddings", model="sentences", input="x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert load(embedder).batch_tokens == before


def test_long_texts_are_limited(embedder: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder.state, "limits", RequestLimits(prompt_tokens=5))
    answer = embedder.post("/v1/embeddings", model="sentences", input=TEXTS)
    assert answer.status_code == 400
    assert "at most 5 are allowed" in answer.json()["error"]["message"]


def test_keys_have_scopes_and_limits(
    embedder: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"

    def key(name: str, *scopes: Scope, **limits: int) -> dict[str, str]:
        secret = create_key(path, name, scopes, limits=KeyLimits(**limits))
        return {"authorization": f"Bearer {secret}"}

    def ask(headers: dict[str, str], address: str, **body: Any) -> httpx.Response:
        with embedder.http as client:
            return client.post(address, json=body, headers=headers)

    classify, embeds = key("c", "classify"), key("e", "embed", tokens_per_minute=8)
    monkeypatch.setattr(embedder.state, "keys", KeyStore(path, None))
    assert ask({}, "/models/entities", inputs="a").status_code == 401
    assert ask(classify, "/models/entities", inputs="a").status_code == 200
    assert ask(embeds, "/models/entities", inputs="a").status_code == 403
    assert ask(classify, "/models/sentences", inputs="a").status_code == 403
    assert ask(classify, "/v1/embeddings", model="sentences", input="a").status_code == 403
    answers = [ask(embeds, "/models/sentences", inputs="a") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-remaining-tokens"] == "5"


def test_options_that_no_bundle_has_a_use_for_are_refused(
    encoder: Encoders, tiny_bundle: Path
) -> None:
    for bundle, options, reason in (
        (encoder("sentences") / "bundle", ["--slots", "2"], "--slots is for models that generate"),
        (tiny_bundle, ["--batch-tokens", "99"], "--batch-tokens is for encoders: leave it out"),
    ):
        refused = CliRunner().invoke(cli.main, ["http", str(bundle), "--port", "0", *options])
        assert refused.exit_code == 1
        assert reason in refused.stderr


def test_metrics_count_batches_and_tokens(embedder: Running) -> None:
    embed(embedder, TEXTS)
    with embedder.http as client:
        lines = client.get("/metrics").text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    ran = load(embedder)
    for name, value in (
        ("encoder_batches_total", ran.batches),
        ("encoder_batch_tokens_total", ran.batch_tokens),
        ("encoder_padding_tokens_total", ran.padding_tokens),
        ("queue_length", 0),
        ("ready", 1),
    ):
        assert float(values[f'serve_llm_{name}{{model="sentences"}}']) == value
    assert ran.padding_tokens
    route = 'serve_llm_request_seconds_count{route="/v1/embeddings",status="200"}'
    assert float(values[route]) >= 1


def test_a_worker_that_is_killed_is_replaced(embedder: Running) -> None:
    served = embedder.state.models.get("sentences")
    assert served is not None
    restarts = served.worker.restarts
    with ThreadPoolExecutor(1) as threads, stopped(embedder):
        asked = threads.submit(embed, embedder, TEXTS)
        until(lambda: in_flight(embedder) == 1)
        assert served.worker.process_id is not None
        os.kill(served.worker.process_id, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError, match="send it again"):
            asked.result()
    until(lambda: served.worker.opened is not None)
    assert served.worker.restarts == restarts + 1
    assert len(embed(embedder, TEXTS).data) == 4
