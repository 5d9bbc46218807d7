"""The ensemble form in a real Triton server, against the bundle itself and the single model."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import serving
from serving.generation import Model
from serving.triton.ensemble.probes import PROBE_SECONDS
from serving.triton.repository import Deployment, write_version
from serving.triton.settings import Settings
from tests.serving.triton.clients import connection, until
from tests.serving.triton.conftest import Triton
from tests.serving.triton.test_lifecycle import state
from tests.serving.triton.test_streaming import SEED, TEXT, guided, in_use

pytestmark = pytest.mark.xdist_group("triton")

# More tokens than any test waits for; the trained model takes its time for each.
ENDLESS = 20_000
FOREVER = {"text_input": "a", "max_tokens": ENDLESS, "min_tokens": ENDLESS}
ECHO = {"exclude_input_in_output": False}
RETURNS = {
    "return_log_probs": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}


@contextmanager
def served(triton: Triton, bundle: Path, name: str, **settings: Any) -> Iterator[str]:
    """Write and load an ensemble, which loads its steps; unload them at the end."""
    deployment = Deployment(bundle, name, Settings(**settings), is_ensemble=True)
    write_version(deployment, triton.repository)
    triton.load(name).raise_for_status()
    yield name
    triton.unload(name, unload_dependents=True).raise_for_status()
    # Triton would wait for a request that it never freed.
    for model in (name, f"{name}-engine"):
        until(lambda model=model: state(triton, model) == ("UNAVAILABLE", "unloaded"))


@pytest.fixture(scope="module")
def long_bundle(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained bundle, for answers as long as a test wants; a byte-level BPE."""
    bundle = tmp_path_factory.mktemp("long") / "bundle"
    shutil.copytree(trained_bundle, bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["graph"]["max_length"] = 2 * ENDLESS
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture(scope="module")
def ensemble(shared_triton: Triton, long_bundle: Path) -> Iterator[str]:
    settings = {"capacity": 2 * ENDLESS, "prefix_rows": 0}
    with served(shared_triton, long_bundle, "ensemble", **settings) as name:
        yield name


@pytest.fixture(scope="module")
def fallback_ensemble(shared_triton: Triton, fallback_bundle: Path) -> Iterator[str]:
    with served(shared_triton, fallback_bundle, "fallback-ensemble", capacity=256) as name:
        yield name


@pytest.fixture(scope="module")
def model(trained_bundle: Path) -> Iterator[Model]:
    with serving.load(trained_bundle, threads=1, capacity=256) as opened:
        yield opened


@pytest.mark.parametrize(
    "body",
    [
        {"text_input": "def main(", "max_tokens": 24},
        {"text_input": "# é 😀 ", "max_tokens": 24, **ECHO, **RETURNS},
        {"input_ids": [40, 41, 42], "max_tokens": 12, **ECHO, **RETURNS},
        {"text_input": "class Parser", "max_tokens": 12, "beam_width": 3, **ECHO, **RETURNS},
        {"text_input": "x", "max_tokens": 40, "top_p": 0.9, "seed": 3, "stop_words": ["e", "\n"]},
        {"text_input": "class Parser", "max_tokens": 12, "bad_words": ["(", "self"]},
    ],
    ids=lambda body: " ".join(body),
)
def test_answers_as_the_single_model_does(
    triton: Triton, ensemble: str, trained: str, body: dict[str, Any]
) -> None:
    expected = triton.generate(trained, **body)
    answer = triton.generate(ensemble, **body)
    assert expected["text_output"]
    sequence = {name: answer.get(name) for name in answer if name.startswith("sequence_")}
    assert answer == expected | {"model_name": ensemble} | sequence  # which Triton adds


@pytest.mark.parametrize(
    ("kind", "bundle"),
    [("ensemble", "trained_bundle"), ("fallback_ensemble", "fallback_bundle")],
)
def test_no_character_is_broken_or_lost(
    triton: Triton, kind: str, bundle: str, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(kind)
    with connection(triton.grpc) as stream:
        for options in (
            guided(TEXT),
            guided(TEXT) | {"stop_words": ["👧x", "好 \n end", "w\n"]},
            {"text_input": "# ", "max_tokens": 60, "seed": SEED},
        ):
            stream.send(name, stream=True, **({"temperature": 2.0} | options))
        constrained, stopped, drawn = stream.collect()
    assert constrained.text == TEXT
    assert len(constrained.texts) > 5
    assert all("\ufffd" not in part for part in constrained.texts)
    assert stopped.text == TEXT[: TEXT.index("好")]
    assert (stopped.finish_reason, stopped.error) == ("stop", None)
    path = request.getfixturevalue(bundle)
    with serving.load(path, threads=1, capacity=256) as model:
        expected = model.generate("# ", max_new_tokens=60, temperature=2.0, seed=5)
    assert drawn.text == expected.text
    assert drawn.token_ids == expected.token_ids


def test_many_streams_keep_their_parts_in_order_and_bad_requests_disturb_none(
    triton: Triton, ensemble: str, model: Model
) -> None:
    prompts = [f"def function_{number}(" for number in range(32)]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": 5}, "0 inputs"),  # says Triton, as nothing is left for preprocessing
        ({"text_input": "", "max_tokens": 5}, "There is no prompt"),
        ({"text_input": np.array([[b"\xff"]], np.object_)}, "text_input isn't UTF-8"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"text_input": "a", "input_ids": [1]}, "exclude each other"),
        ({"text_input": "a", "max_tokens": 50_000}, "don't fit into the capacity"),
        ({"text_input": "a", "max_tokens": np.array([[1, 2]], np.int32)}, "unexpected shape"),
        ({"text_input": "a", "guided_decoding_guide_type": "poem"}, "must be one of json"),
    ]
    with connection(triton.grpc) as stream:
        for number, prompt in enumerate(prompts):
            stream.send(ensemble, text_input=prompt, max_tokens=20, stream=True)
            if number < len(bad):
                stream.send(ensemble, **bad[number][0], stream=True)
        answers = stream.collect()
    failed = [answer for answer in answers if answer.error]
    for one, (_, reason) in zip(failed, bad, strict=True):
        assert reason in str(one.error)
    expected = model.generate(prompts, max_new_tokens=20)
    good = [answer for answer in answers if not answer.error]
    assert [one.text for one in good] == [result.text for result in expected]
    assert [one.token_ids for one in good] == [result.token_ids for result in expected]
    assert sum(len(one.texts) for one in good) > 32 * 10


def test_the_engine_alone_takes_and_gives_ids(triton: Triton, ensemble: str, model: Model) -> None:
    ids = model.encode("def main(")
    answer = triton.generate(f"{ensemble}-engine", input_ids=ids, max_tokens=8)
    assert answer["output_ids"] == model.generate(ids, max_new_tokens=8).token_ids
    assert "text_output" not in answer
    said = triton.generate(f"{ensemble}-engine", input_ids=ids, max_tokens=0)
    assert said == {"error": "max_tokens is 0, but must be at least 1: raise it."}


def test_clients_that_go_away_free_their_slots(triton: Triton, ensemble: str) -> None:
    engine = f"{ensemble}-engine"
    cancelled = triton.metric('serve_llm_requests_total{ending="cancelled"', engine)
    with connection(triton.grpc) as other:
        other.send(ensemble, text_input="a", max_tokens=600, min_tokens=600, stream=True)
        with connection(triton.grpc, cancels=True) as stream:
            for streams in (True, False):
                stream.send(ensemble, **FOREVER, stream=streams)
            assert stream.next_text()
            url = f"{triton.url}/v2/models/{ensemble}/generate_stream"
            with httpx.stream("POST", url, json=FOREVER | {"stream": True}, timeout=30) as response:
                lines = response.iter_lines()  # its end would close the connection
                # The engine asks after the client meanwhile, who hears nothing of it.
                until_asked = time.monotonic() + 1.5 * PROBE_SECONDS
                while time.monotonic() < until_asked:
                    assert "text_output" in next(filter(None, lines))
                until(lambda: in_use(triton, engine) >= 3)
        (undisturbed,) = other.collect()
    assert len(undisturbed.token_ids) == 600
    until(lambda: in_use(triton, engine) == 0)
    ended = triton.metric('serve_llm_requests_total{ending="cancelled"', engine)
    assert ended == cancelled + 3


def test_errors_in_the_midst_of_streams(triton: Triton, ensemble: str) -> None:
    with connection(triton.grpc) as stream:
        for _ in range(8):
            stream.send(ensemble, **FOREVER, stream=True, timeout=500_000)
        given_up = stream.collect()
    assert any(one.texts for one in given_up)
    assert all("wasn't finished in its time" in str(one.error) for one in given_up)
