"""The commands of the Python runtime over the C library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from serving.cli import main
from serving.native.engine import NativeEngine
from tests.serving.native.building import run
from tests.serving.tiny_graph import make_graph


@pytest.mark.usefixtures("prefix")
def test_generate_over_the_library(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    step = NativeEngine.step

    def noted(engine: NativeEngine, *arguments: Any, **options: Any) -> Any:
        steps.append(engine)
        return step(engine, *arguments, **options)

    monkeypatch.setattr(NativeEngine, "step", noted)
    found = {}
    for runtime in ("python", "native"):
        options = ["--max-new-tokens", "9", "--temperature", "0.9", "--seed", "4", "--json"]
        command = ["generate", str(tiny), "hello", "--runtime", runtime, *options]
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        found[runtime] = json.loads(done.output)["token_ids"]
        assert bool(steps) == (runtime == "native")
    assert found["python"] == found["native"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_broken_model_is_an_error(prefix: Path, tiny: Path, temperature: int) -> None:
    graph = make_graph()
    (head,) = (each for each in graph.graph.initializer if each.name == "head")
    broken = np.full(tuple(head.dims), np.nan, np.float32)
    head.CopyFrom(onnx.numpy_helper.from_array(broken, "head"))
    onnx.save(graph, str(tiny / "model.onnx"))
    arguments = ("--prompt", "a", "--no-verify", "--temperature", temperature)
    done = run(prefix / "bin" / "llm-run", tiny, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "returned NaN" in done.stderr
