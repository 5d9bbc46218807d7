"""LoRA adapters that requests to Triton choose."""

from collections.abc import Callable
from pathlib import Path

import pytest

import serving
from serving.bundle import open_bundle
from serving.triton.check import check_repository
from serving.triton.repository import Deployment, write_version
from tests.exports import export_bundle
from tests.serving.peft_files import random_weights, write_adapter
from tests.serving.triton.conftest import Triton

pytestmark = pytest.mark.xdist_group("triton")


def test_an_adapter_is_chosen_by_a_request(
    triton: Triton, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = export_bundle(checkpoint("qwen2"), tmp_path / "bundle", lora=True)
    tables = open_bundle(bundle).manifest.graph.lora
    shapes = {m.name: (t.inputs, m.outputs) for t in tables for m in t.modules}
    adapter = write_adapter(tmp_path / "sql", random_weights(shapes, rank=4, size=0.6))
    deployment = Deployment(bundle, "adapted", adapters={"sql": adapter})
    version = write_version(deployment, triton.repository)
    assert dict(check_repository(triton.repository))["adapted"] == []
    triton.load("adapted").raise_for_status()
    with serving.load(bundle, adapters={"sql": adapter}, threads=1) as model:
        texts = []
        for name in (None, "sql"):
            expected = model.generate("hello", max_new_tokens=12, adapter=name)
            chosen = {"adapter": name} if name else {}
            answer = triton.generate("adapted", text_input="hello", max_tokens=12, **chosen)
            assert answer["output_ids"] == expected.token_ids
            texts.append(expected.text)
    assert texts[0] != texts[1]
    triton.unload("adapted")
    (version / "adapters" / "sql" / "adapter_model.safetensors").unlink()
    (problem,) = dict(check_repository(triton.repository))["adapted"]
    assert "adapter_model.safetensors" in problem
