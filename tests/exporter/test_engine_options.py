"""Options of TensorRT engines reach the plan, the engine and the manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import open_bundle
from tests.exporter.commands import run

pytest.importorskip("tensorrt_rtx")
RTX = ("--target", "tensorrt-rtx")
SIZES = ("--max-length", 64, "--batch", 3, "--prefill-chunk", 16)


def planned(model: Path, bundle: Path, *options: object) -> dict[str, Any]:
    result = run(model, bundle, *options, "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_pruning_in_pairs_makes_sparse_weights(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model, bundle = checkpoint("llama"), tmp_path / "bundle"
    pairs = planned(model, bundle, *RTX, "--prune-2-4")["build_options"]
    any_weights = planned(model, bundle, *RTX, "--prune", 0.5)["build_options"]
    assert (pairs["sparse_weights"], any_weights["sparse_weights"]) == (True, False)


def test_tensorrt_has_modes_of_its_own(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    modes = ("--version-compatible", "--hardware-compatibility", "none")
    plan = planned(checkpoint("llama"), tmp_path / "bundle", "--target", "tensorrt", *modes)
    assert plan["build_options"] == {
        "compute_capabilities": [],
        "hardware_compatibility": "none",
        "version_compatible": True,
        "sparse_weights": False,
    }


def test_the_manifest_says_how_the_engine_was_built(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    gpus = ("--compute-capability", "8.9, 8.6,8.9")
    result = run(checkpoint("llama"), bundle, *RTX, *SIZES, *gpus)
    assert result.exit_code == 0, result.stderr
    opened = open_bundle(bundle)
    (engine,) = opened.manifest.engines
    assert engine.compute_capabilities == ("8.9", "8.6")
    assert (engine.max_batch, engine.max_sequence, engine.prefill_chunk) == (3, 64, 16)
    summary = opened.file("model.tensorrt-rtx.json")
    assert summary is not None
    shapes = [p["shapes"]["input_ids"][-1] for p in json.loads(summary.read_text())["profiles"]]
    assert shapes == [[1, 16], [3, 1]]
