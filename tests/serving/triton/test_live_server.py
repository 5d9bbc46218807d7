"""A model of ours in the server that tests share."""

from pathlib import Path

import httpx
import pytest

import serving
from serving.triton.repository import Deployment, write_version
from tests.serving.tiny_bundle import make_bundle
from tests.serving.triton.conftest import Triton

pytestmark = pytest.mark.xdist_group("triton")


def test_answers_as_the_bundle_does_and_is_unloaded(triton: Triton, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    write_version(Deployment(bundle, "tiny"), triton.repository)
    httpx.post(f"{triton.url}/v2/repository/models/tiny/load", timeout=60).raise_for_status()
    answer = httpx.post(
        f"{triton.url}/v2/models/tiny/generate", json={"text_input": "hello", "max_tokens": 20}
    )
    with serving.load(bundle, threads=1) as model:
        assert answer.json()["text_output"] == model.generate("hello", max_new_tokens=20).text
    httpx.post(f"{triton.url}/v2/repository/models/tiny/unload").raise_for_status()
