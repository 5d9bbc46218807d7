"""Engines exported without weights: small, and whole again to the byte with the checkpoint."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engines import stripping
from engines.stripping import strip
from engines.tensorrt.builder import build
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled
from serving.bundle import DType, open_bundle
from serving.errors import UserError
from serving.restoring import restore_bundle
from serving.stripped_engine import restore
from tests.checkpoints import make_checkpoint
from tests.exporter.commands import refusal, run

LIMIT = 0.02  # of the whole engine


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def built_engine(checkpoint: Path, directory: Path, dtype: DType) -> Path:
    """An engine of this checkpoint, without the checks of an export."""
    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=kind).eval()
    graph = trace_unrolled(model, cache_layers(model))
    engine = build(graph, directory, target="tensorrt-rtx", max_length=64, batch=2)
    return directory / engine.name


@pytest.mark.parametrize(
    ("architecture", "stored", "dtype"),
    [
        ("gpt2", "float32", "float16"),
        ("qwen2", "bfloat16", "bfloat16"),
    ],
)
def test_an_engine_is_restored_to_the_byte(
    tmp_path: Path,
    checkpoint: Callable[[str], Path],
    architecture: str,
    stored: DType,
    dtype: DType,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = checkpoint(architecture)
    if stored != "float32":
        kind = getattr(torch, stored)
        AutoModelForCausalLM.from_pretrained(model, dtype=kind).save_pretrained(tmp_path / "model")
        model = tmp_path / "model"
    engine = built_engine(model, tmp_path, dtype)
    size, digest = engine.stat().st_size, sha256(engine)
    stripped, whole = strip(engine, model, dtype)
    assert (whole.size, whole.sha256) == (size, digest)
    assert stripped.stat().st_size <= LIMIT * size
    assert not engine.exists()
    restore(stripped, model, engine)
    assert sha256(engine) == digest


def test_an_export_is_restored_with_its_checkpoint_and_no_other(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model, tuned = tmp_path / "model", tmp_path / "tuned"
    make_checkpoint("qwen2", model, tie_word_embeddings=True)
    make_checkpoint("qwen2", tuned, tie_word_embeddings=True, seed=1)
    bundle = tmp_path / "bundle"
    options = ("--target", "tensorrt-rtx", "--fp16", "--max-length", 64, "--strip-weights")
    result = run(model, bundle, *options)
    assert result.exit_code == 0, result.stderr
    (engine,) = open_bundle(bundle).manifest.engines
    assert engine.stripped_from is not None
    assert (bundle / engine.file).stat().st_size <= LIMIT * engine.stripped_from.size
    with pytest.raises(UserError, match="has other weights than the checkpoint"):
        restore_bundle(bundle, tuned)
    (restored,) = restore_bundle(bundle, model)
    assert sha256(restored) == engine.stripped_from.sha256
    assert open_bundle(bundle).manifest.engines[0].file == restored.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fp16",), "--target tensorrt-rtx or tensorrt alone"),
        (("--target", "tensorrt-rtx"), "add --fp16 or --bf16"),
        (("--target", "tensorrt-rtx", "--fp16", "--int8"), "quantised or pruned weights"),
        (("--target", "tensorrt-rtx", "--fp16", "--prune", "0.5"), "quantised or pruned weights"),
    ],
)
def test_what_cant_be_stripped_is_refused_before_any_work(
    tmp_path: Path, checkpoint: Callable[[str], Path], options: tuple[str, ...], message: str
) -> None:
    arguments = (checkpoint("llama"), tmp_path / "bundle", "--strip-weights", *options)
    assert message in refusal(tmp_path, *arguments)


def test_an_engine_with_other_weights_is_refused(
    tmp_path: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripping, "_CODE", 0)
    engine = tmp_path / "model.engine"
    engine.write_bytes(torch.randn(10_000).numpy().tobytes())
    with pytest.raises(UserError, match=r"are not in the checkpoint as they are.*leave out --str"):
        strip(engine, checkpoint("llama"), "float16")


def test_an_engine_that_comes_out_wrong_is_refused(
    tmp_path: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(bytes(1000))
    monkeypatch.setattr(stripping, "restore", lambda _, __, file: file.write_bytes(b"\1" * 1000))
    with pytest.raises(UserError, match="can't be put together again"):
        strip(engine, checkpoint("llama"), "float16")
