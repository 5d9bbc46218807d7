"""The examples of README.md and docs/http.md run as they are, but for the port."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving.http.running import Running, running

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "docs/http.md")


@pytest.fixture(scope="module")
def demo(trained_bundle: Path, encoder: Callable[[str], Path]) -> Iterator[Running]:
    encoders = {"minilm": "sentences", "ner": "entities"}
    bundles = {name: encoder(tiny) / "bundle" for name, tiny in encoders.items()}
    with running({"demo": trained_bundle, **bundles}, capacity=256) as server:
        yield server


def examples(page: str, pattern: str, server: Running) -> list[str]:
    text = (ROOT / page).read_text().replace("http://127.0.0.1:8000", server.url)
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("page", PAGES)
def test_curl(demo: Running, page: str) -> None:
    for command in examples(page, r"^    (curl [^\n]*/v1/.*?)\n\n", demo):
        ended = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True
        )
        first = ended.stdout.removeprefix("data: ").partition("\n")[0]
        assert json.loads(first)["choices"]


@pytest.mark.parametrize("page", PAGES)
def test_python(demo: Running, page: str) -> None:
    for script in examples(page, r"^```python\n(from (?:openai|huggingface_hub) .*?)```", demo):
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip()
