"""Versions, instances and models that come and go in a real Triton server."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.triton_server.launch import Loading
from serving.encryption import encrypt_bundle
from serving.triton.repository import CONFIG, Deployment, write_version
from serving.triton.settings import Settings
from tests.serving.tiny_bundle import make_bundle
from tests.serving.triton.clients import connection, until
from tests.serving.triton.conftest import Triton
from tests.serving.triton.live_server import running_triton

pytestmark = pytest.mark.xdist_group("triton")

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"


def answer(triton: Triton, model: str, prompt: str = "hello") -> str:
    return str(triton.generate(model, text_input=prompt, max_tokens=8).get("text_output"))


def state(triton: Triton, model: str) -> tuple[str, str]:
    """Whether Triton serves a model, and why not."""
    index = httpx.post(f"{triton.url}/v2/repository/index", timeout=60).json()
    entry = next((entry for entry in index if entry["name"] == model), {})
    return entry.get("state", "UNKNOWN"), entry.get("reason", "")


def test_a_second_version_is_loaded_beside_running_streams(triton: Triton, tmp_path: Path) -> None:
    # The same model, whose second version has another alphabet.
    first = make_bundle(tmp_path / "first", tokens={})
    second = make_bundle(tmp_path / "second", LETTERS.swapcase(), tokens={})
    triton.serve(first, "versions", prefix_rows=0)
    before = answer(triton, "versions")
    assert before == before.lower()
    with connection(triton.grpc) as stream:
        stream.send("versions", text_input="hello", max_tokens=3000, stream=True)
        assert stream.next_text()
        triton.serve(second, "versions", prefix_rows=0)
        assert answer(triton, "versions", "HELLO") == before.upper()
        (streamed,) = stream.collect()
    assert (streamed.finish_reason, streamed.error) == ("length", None)
    assert streamed.text == streamed.text.lower()
    triton.unload("versions")


def test_both_versions_are_served_if_asked_for(triton: Triton, tmp_path: Path) -> None:
    for letters in (LETTERS, LETTERS.swapcase()):
        bundle = make_bundle(tmp_path / letters[:1], letters, tokens={})
        write_version(Deployment(bundle, "both", versions=2), triton.repository)
    triton.load("both").raise_for_status()
    url = f"{triton.url}/v2/models/both/versions"
    texts = [
        httpx.post(f"{url}/{version}/generate", json={"text_input": prompt, "max_tokens": 8})
        for version, prompt in ((1, "hello"), (2, "HELLO"))
    ]
    old, new = [text.json()["text_output"] for text in texts]
    assert old == new.lower() != new
    triton.unload("both")


def damaged(bundle: Path, _: Path) -> None:
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"damage")


def not_there(bundle: Path, _: Path) -> None:
    shutil.rmtree(bundle)


def bad_parameter(_: Path, model: Path) -> None:
    text = (model / CONFIG).read_text()
    (model / CONFIG).write_text(
        text + 'parameters { key: "slots" value { string_value: "many" } }\n'
    )


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (damaged, "model.onnx"),
        (not_there, "There is no bundle directory"),
        (bad_parameter, "'slots' in config.pbtxt can't be used"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(
    triton: Triton, tmp_path: Path, breaks: Callable[[Path, Path], None], reason: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_version(Deployment(bundle, breaks.__name__), triton.repository)
    breaks(bundle, triton.repository / breaks.__name__)
    answered = triton.load(breaks.__name__)
    assert answered.status_code == 400
    assert reason in answered.json()["error"]
    assert "Traceback" not in answered.json()["error"]
    assert reason in state(triton, breaks.__name__)[1]


def test_several_instances_share_the_work(triton: Triton, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tokens={})
    settings = Settings(slots=1, prefix_rows=0)
    write_version(Deployment(bundle, "pair", settings, instances=2), triton.repository)
    triton.load("pair").raise_for_status()
    with connection(triton.grpc) as stream:
        for _ in range(8):
            stream.send("pair", text_input="hello", max_tokens=50)
        assert len({one.text for one in stream.collect()}) == 1
    time.sleep(1.2)  # metrics are reported every second
    lines = httpx.get(triton.server.addresses.metrics).text.splitlines()
    finished = 'serve_llm_requests_total{ending="finished",instance="pair_0_'
    counts = [float(line.split()[-1]) for line in lines if line.startswith(finished)]
    assert sum(counts) == 8
    assert len([count for count in counts if count]) == 2
    triton.unload("pair")


def test_metrics(triton: Triton, tmp_path: Path) -> None:
    triton.serve(make_bundle(tmp_path / "bundle", tokens={}), "counted", slots=3)
    for prompt in ("hello you" * 8, "hello you" * 8 + "!", ""):
        triton.generate("counted", text_input=prompt, max_tokens=5)
    time.sleep(1.2)

    def metric(name: str) -> float:
        return triton.metric(f"serve_llm_{name}", "counted")

    assert metric('requests_total{ending="finished"') == 2
    assert metric('requests_total{ending="failed"') == 1
    assert metric("prompt_tokens_total") == 145
    assert metric("generated_tokens_total") == 10
    assert metric("cache_hit_tokens_total") == 72
    assert metric("time_to_first_token_seconds_count") == 2
    assert metric("time_per_output_token_seconds_count") == 2
    assert metric("slots{") == 3
    triton.unload("counted")
    until(lambda: not metric("requests_total"))  # nothing is left of a model that has gone


def test_unloading_frees_everything(triton: Triton, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_version(Deployment(bundle, "again"), triton.repository)
    server = psutil.Process(triton.server.pid)

    def load_and_unload() -> None:
        triton.load("again").raise_for_status()
        assert answer(triton, "again")
        triton.unload("again")
        until(lambda: state(triton, "again") == ("UNAVAILABLE", "unloaded"))

    def held() -> dict[str, int]:
        shared = [name for name in os.listdir("/dev/shm") if name.startswith("export-llm-triton")]
        processes = server.children(recursive=True)
        return {"files": server.num_fds(), "processes": len(processes), "shared": len(shared)}

    for _ in range(3):
        load_and_unload()
    before, memory = held(), server.memory_info().rss
    for _ in range(17):
        load_and_unload()
    # What one load in ten left behind would show.
    assert all(count <= before[kind] + 1 for kind, count in held().items()), (before, held())
    assert server.memory_info().rss < memory + 2e6


def test_a_repository_that_is_polled(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_version(Deployment(make_bundle(tmp_path / "one"), "one"), repository)
    with running_triton(
        repository, tmp_path / "log", Loading(polls=True), ["--repository-poll-secs=1"]
    ) as server:
        triton = Triton(server, repository, tmp_path / "log")
        assert answer(triton, "one")
        write_version(Deployment(make_bundle(tmp_path / "two"), "two"), repository)
        until(lambda: state(triton, "two")[0] == "READY")
        assert answer(triton, "two") == answer(triton, "one")
        errors = [line for line in (tmp_path / "log").read_text().splitlines() if line[0:1] == "E"]
    # What Triton says where there is no GPU begins so, too.
    assert [line for line in errors if "two" in line] == []


def test_an_encrypted_bundle(triton: Triton, tmp_path: Path) -> None:
    plain, key = make_bundle(tmp_path / "plain"), tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("5a" * 32)
    encrypt_bundle(plain, tmp_path / "encrypted", key)
    triton.serve(plain, "plain")
    triton.serve(tmp_path / "encrypted", "encrypted", key_file=key)
    assert answer(triton, "encrypted") == answer(triton, "plain")
