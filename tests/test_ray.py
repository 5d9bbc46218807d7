"""What runs on Ray, on one local instance of it that all these tests share.

Starting Ray takes seconds. With ``--dist loadgroup``, which scripts/test passes, one worker of
pytest-xdist runs all of them; else each worker that gets some starts an instance of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray

import serving
from serving.http.keys import VARIABLE
from tests.serving.tiny_bundle import make_bundle

pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[1]
SECRET = "s" * 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ray") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray instance with two CPUs."""
    context = ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_a_killed_batch_goes_on_where_it_was(cluster: str, bundle: Path, tmp_path: Path) -> None:
    lines = [
        {"id": f"r{i}", "prompt": "hello"[: i % 4 + 1], "max_new_tokens": 150 + i, "i": i}
        for i in range(40)
    ]
    inputs, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = [sys.executable, ROOT / "scripts" / "batch_generate", bundle, inputs, output]
    options = ["--batch-size", "4", "--ignore-eos", "--json", "--address", cluster]

    def start() -> "subprocess.Popen[str]":
        # Elsewhere, so that Ray's workers don't find the scripts in the current directory.
        return subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )

    with start() as killed:
        until(lambda: (output.exists() and output.stat().st_size) or killed.poll() is not None)
        killed.kill()
    done = output.read_text().count("\n")
    assert 0 < done < len(lines)
    with start() as resumed:
        summary = json.loads(resumed.communicate()[0])
    assert resumed.returncode == 0
    assert summary["earlier"] in (done, done - 1)

    found = {line["id"]: line for line in map(json.loads, output.read_text().splitlines())}
    assert len(output.read_text().splitlines()) == len(found) == len(lines)
    with serving.load(bundle, threads=1) as model:
        for line in lines:
            alone = model.generate(
                line["prompt"], max_new_tokens=line["max_new_tokens"], ignore_eos=True
            )
            assert found[line["id"]]["text"] == alone.text
            assert found[line["id"]]["i"] == line["i"]


@contextmanager
def serve_llm_ray(
    cluster: str, bundle: Path, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command on the shared instance, whose nodes don't know its key, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from serving.cli import main; main()", "ray"]
    here = ["--address", cluster, "--port", str(port), "--drain-seconds", "20"]
    with subprocess.Popen(
        [*command, f"tiny={bundle}", *here, *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, VARIABLE: SECRET},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"tiny: http://127.0.0.1:{port}/v1\n"
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def replicas() -> set[int]:
    """The processes of the replicas, which are offspring of the instance that this one started."""
    named = {each.pid: " ".join(each.cmdline()) for each in psutil.Process().children(True)}
    return {pid for pid, name in named.items() if "ServeReplica:serve-llm" in name}


def test_replicas_answer_and_stream_are_replaced_and_drain(cluster: str, bundle: Path) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "hello", "temperature": 0}
    endless = {**body, "max_tokens": 1_000_000, "context_overflow": "slide", "ignore_eos": True}
    with serving.load(bundle, threads=1) as model:
        alone = model.generate("hello", max_new_tokens=30)
    with (
        serve_llm_ray(cluster, bundle, "--slots", "2", "--capacity", "1024") as (process, url),
        httpx.Client(
            base_url=url, timeout=30, headers={"authorization": f"Bearer {SECRET}"}
        ) as client,
    ):

        def text() -> str:
            answer = client.post("/v1/completions", json={**body, "max_tokens": 30})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["text"])

        assert client.get("/ready").json() == {"status": "ready"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert text() == alone.text
        (first,) = replicas()

        with client.stream("POST", "/v1/completions", json={**endless, "stream": True}) as stream:
            lines = (line for line in stream.iter_lines() if line)
            pieces = [json.loads(next(lines).removeprefix("data: ")) for _ in range(20)]
            streamed = "".join(piece["choices"][0]["text"] for piece in pieces)
            assert streamed
            assert alone.text.startswith(streamed)
            psutil.Process(first).kill()
            with pytest.raises(httpx.RemoteProtocolError):  # not an end that looks like one
                list(lines)

        def is_ready() -> bool:
            return client.get("/ready").status_code == 200 and first not in replicas()

        until(is_ready)
        assert text() == alone.text

        long = {**endless, "max_tokens": 1000, "stream": True}
        with client.stream("POST", "/v1/completions", json=long) as stream:
            lines = (line for line in stream.iter_lines() if line)
            events = [next(lines)]
            process.send_signal(signal.SIGTERM)
            events += lines
        assert len(events) == 1001
        assert events[-1] == "data: [DONE]"
        assert process.wait(30) == 0
        until(lambda: not replicas())
