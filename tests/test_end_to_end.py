"""The trained checkpoint the whole way: exported by the command, served, compared."""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import serving
from serving import Model, kernels
from serving.bundle import open_bundle
from tests.exporter.commands import contents, refusal, run
from tests.exports import once

PROMPT = "def main("
CHAT = [{"role": "user", "content": "What does shutil.copytree do?"}]


@pytest.fixture(scope="session")
def bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        result = run(trained_checkpoint, path)
        assert result.exit_code == 0, result.output

    return once(tmp_path_factory, "trained/float32", make)


@pytest.fixture(scope="session")
def half_bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        result = run(trained_checkpoint, path, "--fp16", "--max-length", 200)
        assert result.exit_code == 0, result.output

    return once(tmp_path_factory, "trained/float16", make)


@pytest.fixture(scope="module")
def reference(trained_checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def model(bundle: Path) -> Iterator[Model]:
    with serving.load(bundle, threads=1) as model:
        yield model


def held_out(model: Model, count: int = 8, length: int = 200) -> list[list[int]]:
    """Token ids of modules that the checkpoint was not trained on; see its script."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::16]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in modules]
    ids = [model.encode(text[:2000])[:length] for text in texts]
    return [row for row in ids if len(row) == length][:count]


def perplexity(logits: list[np.ndarray], texts: list[list[int]]) -> float:
    rows = torch.from_numpy(np.concatenate([row[:-1] for row in logits]))
    targets = torch.tensor([token for ids in texts for token in ids[1:]])
    return cross_entropy(rows, targets).exp().item()


def test_perplexity_of_held_out_text(model: Model, reference: PreTrainedModel) -> None:
    texts = held_out(model)
    assert len(texts) == 8
    with torch.no_grad():
        theirs = [reference(torch.tensor([ids])).logits[0].numpy() for ids in texts]
    expected = perplexity(theirs, texts)
    assert 2 < expected < 200  # it was trained: uniform would be 2048
    assert perplexity([model.logits(ids) for ids in texts], texts) == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize("choice", ["none", "avx2"])
def test_other_kernels_write_the_same_text(
    bundle: Path, model: Model, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(PROMPT, max_new_tokens=48, ignore_eos=True)
    monkeypatch.setenv(kernels.CHOICE, choice)
    with serving.load(bundle, threads=1) as other:
        assert other.generate(PROMPT, max_new_tokens=48, ignore_eos=True).text == expected.text


def test_half_precision_keeps_the_perplexity(half_bundle: Path, model: Model) -> None:
    manifest = open_bundle(half_bundle).manifest
    assert manifest.graph.dtype == "float16"
    assert manifest.parity["status"] == "passed"
    texts = held_out(model)
    expected = perplexity([model.logits(ids) for ids in texts], texts)
    with serving.load(half_bundle, threads=1) as half:
        cache = half.engine.cache
        assert cache.capacity == 200
        assert cache.nbytes == cache.slots * 200 * manifest.graph.kv_bytes_per_token
        got = perplexity([half.logits(ids) for ids in texts], texts)
        result = half.generate(PROMPT, max_new_tokens=20)
    assert got == pytest.approx(expected, rel=1e-2)
    assert got != expected
    assert result.text == model.generate(PROMPT, max_new_tokens=20).text


def test_text_is_that_of_transformers(
    model: Model, reference: PreTrainedModel, trained_checkpoint: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained_checkpoint)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = reference.generate(**inputs, max_new_tokens=100, do_sample=False)
    expected = output[0, inputs.input_ids.shape[1] :].tolist()
    result = model.generate(PROMPT, max_new_tokens=100)
    assert result.token_ids == expected
    assert result.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_streaming_adds_up(model: Model) -> None:
    prompts = [PROMPT, "class Parser", "import"]
    results = model.generate(prompts, max_new_tokens=60)
    texts = [""] * len(prompts)
    for token in model.generate(prompts, max_new_tokens=60, stream=True):
        texts[token.index] += token.text
    assert texts == [result.text for result in results]
    assert all(texts)


def test_chat_ends_by_itself(model: Model) -> None:
    ids = model.encode_chat(CHAT)
    result = model.generate(ids, max_new_tokens=150)
    assert result.finish_reason == "stop"
    assert result.token_ids[-1] in model.tokens.eos
    assert len(model.tokens.eos) == 2
    assert result.text
    assert "<|" not in result.text
    longer = model.generate(ids, max_new_tokens=len(result.token_ids) + 5, ignore_eos=True)
    assert longer.token_ids[: len(result.token_ids)] == result.token_ids
    assert longer.finish_reason == "length"


def test_only_half_precision_has_a_graph_for_cuda(bundle: Path, half_bundle: Path) -> None:
    assert not (bundle / "model.cuda.onnx").exists()
    assert (half_bundle / "model.cuda.onnx").exists()


def test_report(bundle: Path, trained_checkpoint: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    assert report["plan"]["model"] == trained_checkpoint.name
    assert report["plan"]["architecture"] == "qwen3"
    parity = report["parity"]
    assert parity["status"] == "passed"
    assert parity["greedy_tokens"] >= 64
    assert parity["divergence"] is None
    assert "ONNX Runtime" in parity["engine"]
    assert [c["name"] for c in parity["comparisons"]] == [
        "prefill",
        "chunked prefill",
        "ragged decode",
    ]
    assert all(c["positions"] > 40 for c in parity["comparisons"])
    assert all(c["max_error"] <= parity["tolerance_max"] for c in parity["comparisons"])
    stored = report["plan"]["parameters"]
    assert report["engines"][0]["weight_bytes"] >= 4 * stored
    # Tied embeddings are one tensor under two names; the last one is the rotary frequencies.
    assert report["weights"]["used"] == 4 * 11 + 3 + 1
    assert report["weights"]["unused_by_the_graph"] == ["model.rotary_emb.original_inv_freq"]
    assert report["weights"]["unused_in_the_checkpoint"] == []
    assert set(report["seconds"]) >= {"Checking", "Tracing", "Writing", "Checking parity"}

    text = (bundle / "report.md").read_text()
    assert "**passed**" in text
    assert "| prefill |" in text
    manifest = open_bundle(bundle).manifest
    assert manifest.parity == parity
    assert set(manifest.files) >= {
        "model.onnx",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "report.md",
        "report.json",
    }
    assert str(trained_checkpoint.parent) not in (bundle / "bundle.json").read_text() + text


def plan(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_dry_run_says_what_would_be_and_does_nothing(
    trained_checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    full = plan(trained_checkpoint, tmp_path / "new" / "bundle")
    assert contents(tmp_path) == {}
    assert full == json.loads((bundle / "report.json").read_text())["plan"]
    assert full["max_length"] == 256
    # 4 layers, 2 KV heads of 32, keys and values, 4 bytes
    assert full["kv_bytes_per_token"] == 4 * 2 * 32 * 2 * 4

    half = plan(trained_checkpoint, bundle, "--fp16", "--max-length", 64)
    assert half["weight_bytes"] * 2 == full["weight_bytes"]
    assert half["kv_bytes_per_token"] * 2 == full["kv_bytes_per_token"]
    assert half["max_length"] == 64

    table = run(trained_checkpoint, tmp_path / "bundle", "--dry-run").stdout
    assert "qwen3" in table
    assert "256" in table


def test_a_bundle_is_replaced_only_by_force(trained_checkpoint: Path, bundle: Path) -> None:
    said = refusal(bundle.parent, trained_checkpoint, bundle)
    assert said == f"{bundle} exists: choose another name, or pass --force to replace it."
