"""``--tensor-parallel``: an engine for each rank, checked together, or one sentence."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from click.testing import CliRunner

import serving
from engines.tensorrt import builder
from engines.tensorrt.configuration import Portability
from exporter import building
from serving.bundle import open_bundle
from serving.cli import main as serve
from serving.errors import UserError
from tests.exporter.commands import refusal, run

OPTIONS = ("--target", "tensorrt-rtx", "--max-length", 64, "--tensor-parallel", 2)


def test_every_rank_has_an_engine(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = tmp_path / "bundle"
    result = run(checkpoint("qwen2"), bundle, *OPTIONS, "--fp16")
    assert result.exit_code == 0, result.output
    manifest = open_bundle(bundle).manifest
    assert manifest.parity["status"] == "passed"
    assert [(engine.file, engine.rank, engine.ranks) for engine in manifest.engines] == [
        (f"model.tensorrt-rtx.rank{rank}.engine", rank, 2) for rank in (0, 1)
    ]
    assert all(e.weight_bytes < manifest.model.weight_bytes for e in manifest.engines)
    assert manifest.graph.layers[0].kv_heads == 2  # of all ranks
    assert "rank 1 of 2" in CliRunner().invoke(serve, ["inspect", str(bundle)]).output
    assert "| tensorrt-rtx, rank 1 of 2 |" in (bundle / "report.md").read_text()
    with pytest.raises(UserError, match="split over 2 GPUs"):
        serving.load(bundle)


def test_the_gate_runs_all_ranks(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the first rank's part, say, is no model."""

    def first_twice(model: ir.Model, ranks: int) -> list[ir.Model]:
        return [split(model, ranks)[0] for _ in range(ranks)]

    def no_build(*_: object, **__: object) -> builder.EngineFile:
        return builder.EngineFile("model.engine", "0", Portability((), None, False), 64)

    split = building.split_into_ranks
    monkeypatch.setattr(builder, "build", no_build)
    monkeypatch.setattr(building, "split_into_ranks", first_twice)
    assert "logits differ" in refusal(tmp_path, checkpoint("qwen2"), tmp_path / "bundle", *OPTIONS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tensor-parallel", 2), "for onnxruntime"),
        ((*OPTIONS, "--tensor-parallel", 3), "has 2 in a layer"),
    ],
)
def test_refusals(
    options: tuple[object, ...], reason: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    text = refusal(tmp_path, checkpoint("qwen2"), tmp_path / "bundle", *options)
    assert reason in text
    assert text.startswith("--tensor-parallel")
