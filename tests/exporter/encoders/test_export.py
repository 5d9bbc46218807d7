"""Bundles of encoders against transformers, and what can't be exported."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.encoders.tasks import AUTO_CLASSES, find_task
from serving.bundle import open_bundle
from serving.encoders.contract import output_names
from serving.encoders.engine import EncoderEngine
from tests.encoders import ENCODERS, VOCABULARY, make_encoder, write_sentence_files
from tests.exporter.commands import refusal, run

Encoders = Callable[[str], Path]

# Rows of 9, 17 and 12 tokens: padding on the right, on the left, in the middle.
MASK = np.zeros((3, 17), np.int64)
MASK[0, :9] = MASK[1] = MASK[2, :5] = MASK[2, 10:] = 1


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_are_those_of_transformers(encoder: Encoders, name: str) -> None:
    folder, (_, task, _) = encoder(name), ENCODERS[name]
    assert find_task(folder / "checkpoint") == task
    model = AUTO_CLASSES[task].from_pretrained(folder / "checkpoint").eval()
    ids = np.random.default_rng(3).integers(5, VOCABULARY, MASK.shape) * MASK
    given = {"input_ids": ids, "attention_mask": MASK}
    bundle = open_bundle(folder / "bundle")
    info = bundle.manifest.require_encoder()
    if info.token_types:
        given["token_type_ids"] = np.repeat([[0, 1]], 9, axis=0).T.reshape(1, 18)[:, :17] * MASK
    with torch.no_grad():
        theirs = model(**{n: torch.from_numpy(a) for n, a in given.items()})
    wanted = [getattr(theirs, n).numpy() for n in output_names(task) if n in theirs]
    if task == "fill-mask":
        positions = np.array([[0, 3], [2, 16], [4, 11]])
        given["logits_positions"] = positions
        wanted = [np.take_along_axis(wanted[0], positions[:, :, None], axis=1)]
    if task == "embed":  # as the files that come with it say: the first token, of length 1
        first = wanted[0][:, 0] / np.linalg.norm(wanted[0][:, 0], axis=1, keepdims=True)
        wanted = [first, wanted[0]]
    with EncoderEngine(bundle.location("model.onnx"), info, threads=1) as engine:
        ours = engine.run(given, output_names(task))
    for own, right in zip(ours, wanted, strict=True):
        kept = MASK > 0 if own.ndim > 1 and own.shape[:2] == MASK.shape else slice(None)
        np.testing.assert_allclose(own[kept], right[kept], atol=1e-5 * np.abs(right).max())


def test_manifest_says_what_it_is(encoder: Encoders) -> None:
    manifest = open_bundle(encoder("sentences") / "bundle").manifest
    info = manifest.require_encoder()
    assert (info.task, info.pooling, info.normalize) == ("embed", "cls", True)
    assert (info.max_length, info.hidden_size, info.token_types) == (32, 32, True)
    assert manifest.parity["status"] == "passed"
    assert "graph" not in json.loads((encoder("sentences") / "bundle/bundle.json").read_text())
    labels = open_bundle(encoder("entities") / "bundle").manifest.require_encoder().labels
    assert labels == ("O", "B-NAME", "I-NAME")


def test_a_head_that_nobody_trained_is_refused(encoder: Encoders, tmp_path: Path) -> None:
    said = refusal(
        tmp_path, encoder("windows") / "checkpoint", tmp_path / "b", "--task", "text-classification"
    )
    assert "has no weights for classifier.bias" in said
    assert said.endswith("its own task is fill-mask.")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    make_encoder("bert", "fill-mask", tmp_path / "model")
    return tmp_path / "model"


def test_what_is_lost_is_refused(damaged: Path, tmp_path: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    extra = {n.replace("layer.1.", "layer.2."): t.clone() for n, t in tensors.items()}
    save_file(tensors | extra, damaged / "model.safetensors", metadata={"format": "pt"})
    said = refusal(tmp_path, damaged, tmp_path / "bundle")
    assert "encoder.layer.2" in said
    assert said.endswith("config.json is for another model.")
    lost = {n: t for n, t in tensors.items() if "layer.1.output.dense.weight" not in n}
    save_file(lost, damaged / "model.safetensors", metadata={"format": "pt"})
    for task in ("fill-mask", "embed"):
        said = refusal(tmp_path, damaged, tmp_path / "bundle", "--task", task)
        assert "encoder.layer.1.output.dense.weight" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bf16"], "leave --bf16 out."),
        (["--int4"], "Encoders are quantised to 8 bits"),
        (["--w8a8", "--int8-kv"], "An encoder has no KV cache"),
        (["--stages", "2"], "--stages is for models that generate text"),
        (["--prune", "0.5"], "--prune is for models that generate text"),
        (["--max-length", "65"], "this model takes from 2 to 64 tokens."),
        (["--task", "question-answering"], "its own task is fill-mask."),
    ],
)
def test_options_that_cannot_be(
    damaged: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    assert says in refusal(tmp_path, damaged, tmp_path / "bundle", *options)


@pytest.mark.parametrize(
    ("pooling", "says"),
    [("weightedmean_tokens", "asks for the pooling weightedmean_tokens"), ("", "of nothing")],
)
def test_unknown_pooling_is_refused(tmp_path: Path, pooling: str, says: str) -> None:
    model = tmp_path / "model"
    make_encoder("bert", "embed", model)
    write_sentence_files(model, pooling=pooling, normalize=False, length=16)
    if not pooling:
        (model / "1_Pooling" / "config.json").write_text("{}")
    assert says in refusal(tmp_path, model, tmp_path / "bundle")


def test_dry_run_says_the_task(damaged: Path, tmp_path: Path) -> None:
    result = run(damaged, tmp_path / "bundle", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert (plan["task"], plan["max_length"]) == ("fill-mask", 64)
    assert not (tmp_path / "bundle").exists()
