"""What runs on Ray, on one local instance of it that all these tests share.

Starting Ray takes seconds. With ``--dist loadgroup``, which scripts/test passes, one worker of
pytest-xdist runs all of them; else each worker that gets some starts an instance of its own.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

import serving
from tests.serving.tiny_bundle import make_bundle

pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[1]


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
        {"id": f"r{i}", "prompt": "hello"[: i % 4 + 1], "max_new_tokens": 300 + i, "i": i}
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
