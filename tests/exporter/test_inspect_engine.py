"""``export-llm inspect-engine``, on a small engine in a bundle made by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engines.packing import checksums
from engines.tensorrt.builder import build
from engines.tensorrt.inspection import inspect_loaded
from serving.bundle import EngineInfo, Manifest
from serving.errors import UserError
from tests.engines.tensorrt.decoder_graph import CAUSAL, DIM, KV_HEADS, WINDOW, decoder
from tests.exporter.commands import refusal, run

pytest.importorskip("tensorrt_rtx")
LENGTH, BATCH, CHUNK = 64, 3, 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    sizes: dict[str, Any] = {"max_length": LENGTH, "batch": BATCH, "prefill_chunk": CHUNK}
    model = decoder(CAUSAL, WINDOW, dtype="float16")
    built = build(model, directory, target="tensorrt-rtx", **sizes)
    engine = EngineInfo(
        target="tensorrt-rtx",
        file=built.name,
        weight_bytes=0,
        runtime_version=built.runtime_version,
        **asdict(built.portability),
    )
    write_manifest(directory, engine)
    return directory


def write_manifest(directory: Path, *engines: EngineInfo) -> None:
    layer = {"kv_heads": KV_HEADS, "key_dim": DIM, "value_dim": DIM}
    graph = {"contract_version": 1, "vocab_size": 32, "dtype": "float16", "max_length": LENGTH}
    manifest = Manifest.model_validate(
        {
            "format_version": 1,
            "created": "2026-01-01T00:00:00+00:00",
            "built_with": {},
            "model": {"name": "m", "architecture": "llama", "parameters": 1, "weight_bytes": 2},
            "graph": graph | {"layers": [layer, layer]},
            "engines": engines,
            "tokens": {},
            "parity": {"status": "passed"},
            "files": checksums(directory),
        }
    )
    (directory / "bundle.json").write_text(manifest.model_dump_json())


def inspected(bundle: Path) -> dict[str, Any]:
    result = run("inspect-engine", bundle, "--json")
    assert result.exit_code == 0, result.output
    (engine,) = json.loads(result.stdout)
    return dict(engine)


def test_what_was_known_when_it_was_built(bundle: Path) -> None:
    engine = inspected(bundle)
    assert engine["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    prefill, decode = engine["profiles"]
    row = 2 * 2 * KV_HEADS * LENGTH * DIM * 2  # layers, keys and values, bytes of a float16
    assert (prefill["name"], prefill["kv_bytes"]) == ("prefill", row)
    assert (decode["name"], decode["kv_bytes"]) == ("decode", BATCH * row)
    assert prefill["shapes"]["input_ids"] == [[1, 1], [1, CHUNK], [1, CHUNK]]
    assert decode["shapes"]["input_ids"] == [[1, 1], [BATCH, 1], [BATCH, 1]]
    assert all(profile["activation_bytes"] > 1000 for profile in engine["profiles"])
    counts = {(layer["type"], layer["precision"]): layer["count"] for layer in engine["layers"]}
    assert counts["ATTENTION_OUTPUT", "HALF"] == 2
    assert counts["KV_CACHE_UPDATE", "HALF"] == 4
    assert counts["MATRIX_MULTIPLY", "HALF"] == 7


def test_people_read_tables(bundle: Path) -> None:
    result = run("inspect-engine", bundle)
    assert result.exit_code == 0
    assert "for compute capability 8.0, 8.6, 8.9, 12.0, 12.1" in result.stdout
    for word in ("prefill", "decode", "KV_CACHE_UPDATE", "MATRIX_MULTIPLY"):
        assert word in result.stdout


def test_an_engine_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(bytes(1000))
    info = EngineInfo(
        target="tensorrt-rtx", file="model.engine", weight_bytes=0, runtime_version="1"
    )
    with pytest.raises(UserError, match=r"tensorrt-rtx can't load model\.engine here \(.*\): its"):
        inspect_loaded(tmp_path / "model.engine", info)


@pytest.mark.gpu
def test_a_gpu_shows_the_layers_of_the_engine(bundle: Path) -> None:
    loaded = inspected(bundle)["loaded"]
    assert loaded["layers"]
    assert len(loaded["activation_bytes"]) == 2


def test_it_is_a_command_beside_the_export() -> None:
    assert "inspect-engine  Show layers and memory" in run("--help").stdout
    assert run("inspect-engine", "-h").stdout.startswith("Usage: export-llm inspect-engine")
    assert "Missing argument 'BUNDLE'" in run("inspect-engine").stderr
    assert "Missing argument 'MODEL'" in run().stderr


def test_refusals(tmp_path: Path) -> None:
    info = EngineInfo(target="onnxruntime", file="model", weight_bytes=0, runtime_version="1")
    for target, said in (
        ("onnxruntime", "has no TensorRT engine: serve-llm inspect shows"),
        ("tensorrt", "was built by an older export-llm: export the model again"),
    ):
        directory = tmp_path / target
        directory.mkdir()
        (directory / "model").write_text("")
        write_manifest(directory, info.model_copy(update={"target": target}))
        assert said in refusal(tmp_path, "inspect-engine", directory)
    assert "no bundle directory" in refusal(tmp_path, "inspect-engine", tmp_path / "nowhere")
