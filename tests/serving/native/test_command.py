"""The commands of the Python runtime over the C library."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving.cli import main
from serving.native.engine import NativeEngine


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
