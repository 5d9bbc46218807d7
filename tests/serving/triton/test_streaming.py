"""Decoupled streams over gRPC from a real Triton server."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import serving
from tests.serving.triton.clients import Connection, connection, until
from tests.serving.triton.conftest import ENDLESS, Triton

pytestmark = pytest.mark.xdist_group("triton")

SEED = np.array([[5]], np.uint64)
TEXT = "  héllo  wörld 😀👨‍👩‍👧 你好 \n end "


@pytest.mark.parametrize("kind", ["trained", "fallback"])
def test_no_character_is_broken_or_lost(
    triton: Triton, kind: str, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(kind)
    bundle = request.getfixturevalue(f"{kind}_bundle")
    with connection(triton.grpc) as stream:
        for options in (guided(TEXT), {"text_input": "# ", "max_tokens": 60, "seed": SEED}):
            stream.send(name, stream=True, **({"temperature": 2.0} | options))
        constrained, drawn = stream.collect()
    assert constrained.text == TEXT
    assert len(constrained.texts) > 5
    assert all("\ufffd" not in part for part in constrained.texts)
    with serving.load(bundle, threads=1, capacity=256) as model:
        expected = model.generate("# ", max_new_tokens=60, temperature=2.0, seed=5)
    assert drawn.text == expected.text
    assert drawn.token_ids == expected.token_ids


def guided(text: str) -> dict[str, Any]:
    escaped = text.replace("\n", "\\n")
    return {
        "text_input": "x",
        "max_tokens": 120,
        "guided_decoding_guide_type": "choice",
        "guided_decoding_guide": f'["{escaped}"]',
    }


def test_many_streams_side_by_side(triton: Triton, trained: str, trained_bundle: Path) -> None:
    prompts = [f"def function_{number}(" for number in range(32)]
    with connection(triton.grpc) as stream:
        for prompt in prompts:
            stream.send(trained, text_input=prompt, max_tokens=20, stream=True)
        streams = stream.collect()
    with serving.load(trained_bundle, threads=1, capacity=256) as model:
        expected = model.generate(prompts, max_new_tokens=20)
    assert [stream.text for stream in streams] == [result.text for result in expected]


def test_a_bad_request_disturbs_no_other(triton: Triton, trained: str) -> None:
    with connection(triton.grpc) as stream:
        for _ in range(4):
            stream.send(trained, text_input="def main(", max_tokens=40, stream=True)
            stream.send(trained, text_input="def main(", max_tokens=0, stream=True)
            two = np.array([[1, 2]], np.int32)
            stream.send(trained, text_input="def main(", max_tokens=two, stream=True)
            stream.send(trained, text_input=np.array([[b"\xff"]], np.object_), max_tokens=5)
            stream.send(trained, text_input=1.5, max_tokens=5)
        streams = stream.collect()
    good, *bad = [streams[kind::5] for kind in range(5)]
    assert len({(one.text, one.error) for one in good}) == 1
    assert len(good[0].token_ids) == 40
    reasons = [{one.error for one in kind} for kind in bad]
    for said, reason in zip(
        reasons, ("max_tokens is 0", "unexpected shape", "UTF-8", "data-type"), strict=True
    ):
        assert len(said) == 1
        assert reason in str(said.pop())


def in_use(triton: Triton, model: str) -> float:
    return triton.metric("serve_llm_slots_in_use", model) + triton.metric(
        "serve_llm_queue_length", model
    )


@contextmanager
def running(triton: Triton, model: str) -> Iterator[Connection]:
    """A stream that would go on for long, and whose client goes away at the end."""
    with connection(triton.grpc, cancels=True) as stream:
        stream.send(model, text_input="hello", max_tokens=ENDLESS, stream=True)
        assert stream.next_text()
        yield stream


def test_a_client_that_cancels_frees_the_slot(triton: Triton, endless: str) -> None:
    cancelled = triton.metric('serve_llm_requests_total{ending="cancelled"', endless)
    with running(triton, endless), running(triton, endless):
        # Both slots are taken: the third waits, and is cancelled while it does.
        with connection(triton.grpc, cancels=True) as waiting:
            waiting.send(endless, text_input="hello", max_tokens=5, stream=True)
            until(lambda: in_use(triton, endless) == 3)
        until(lambda: in_use(triton, endless) == 2)
    until(lambda: in_use(triton, endless) == 0)
    ended = triton.metric('serve_llm_requests_total{ending="cancelled"', endless)
    assert ended == cancelled + 3
    with connection(triton.grpc) as stream:
        stream.send(endless, text_input="hello", max_tokens=5, stream=True)
        assert len(stream.collect()[0].token_ids) == 5


def test_clients_that_go_away_at_any_moment_disturb_nobody(
    triton: Triton, trained: str, trained_bundle: Path
) -> None:
    moments = random.Random(0)
    prompts = [f"class Name{number}" for number in range(16)]
    with connection(triton.grpc) as stream:
        for prompt in prompts:
            stream.send(trained, text_input=prompt, max_tokens=100, stream=True)
            with connection(triton.grpc, cancels=True) as leaving:
                for _ in range(4):
                    leaving.send(trained, text_input="import", max_tokens=200, stream=True)
                for _ in range(moments.randrange(200)):
                    leaving.next_text()
        stayed = stream.collect()
    until(lambda: in_use(triton, trained) == 0)
    with serving.load(trained_bundle, threads=1, capacity=256) as model:
        expected = model.generate(prompts, max_new_tokens=100)
    assert [one.text for one in stayed] == [result.text for result in expected]


def test_a_reader_of_events_that_goes_away_frees_the_slot(triton: Triton, endless: str) -> None:
    body = {"text_input": "hello", "max_tokens": ENDLESS, "stream": True}
    url = f"{triton.url}/v2/models/{endless}/generate_stream"
    with httpx.stream("POST", url, json=body, timeout=30) as response:
        assert next(response.iter_lines()).startswith("data: ")
    until(lambda: in_use(triton, endless) == 0)


def test_a_request_is_given_up_when_its_time_is_over(triton: Triton, endless: str) -> None:
    with connection(triton.grpc) as stream:
        stream.send(endless, text_input="hello", max_tokens=ENDLESS, timeout=300_000)
        (given_up,) = stream.collect()
    assert "wasn't finished in its time" in str(given_up.error)


def test_unloading_lets_end_what_runs(triton: Triton, endless: str) -> None:
    with connection(triton.grpc) as stream:
        stream.send(endless, text_input="hello", max_tokens=3000, stream=True)
        assert stream.next_text()
        triton.unload(endless)
        try:
            assert "error" in triton.generate(endless, text_input="hello", max_tokens=1)
            (ended,) = stream.collect()
        finally:
            triton.load(endless).raise_for_status()
    assert (ended.finish_reason, ended.error) == ("length", None)
