"""Float16 exports of models with activations that float16 can't hold."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engines.activation_ranges import LARGEST_SAFE, activation_ranges
from engines.passes.lora_inputs import lora_tables
from engines.passes.widened_floats import widen_floats
from engines.standard import optimize
from exporter import export as export_module
from exporter.adapters import adapted
from exporter.calibration_windows import token_windows
from exporter.export import Request, plan_export
from exporter.float16_range import keep_in_range
from exporter.parity import reference_logits
from serving.contract import (
    ADAPTER_IDS,
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    past_name,
)
from serving.lora import AdapterTables, Factors
from tests.checkpoints import make_checkpoint
from tests.exporter.commands import refusal, run
from tests.exports import once

MAX_LENGTH = 32
LAYER = "model.layers.0"
# Powers of two change no digit of a weight, and stay within float16's range themselves.
LARGE, SMALL = 2.0**15, 2.0**-11


def scale_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def large_channel(weights: dict[str, torch.Tensor]) -> None:
    """Let one channel of an MLP reach far beyond 65504 and come back behind it."""
    weights[f"{LAYER}.mlp.up_proj.weight"][0] *= LARGE
    weights[f"{LAYER}.mlp.down_proj.weight"][:, 0] *= SMALL


def large_values(weights: dict[str, torch.Tensor]) -> None:
    """The same with the values of attention, which go through a KV buffer."""
    weights[f"{LAYER}.self_attn.v_proj.weight"][0] *= LARGE
    weights[f"{LAYER}.self_attn.o_proj.weight"][:, 0] *= SMALL


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(
        tmp_path_factory,
        "float16/overflowing",
        lambda path: scale_weights(make_checkpoint("llama", path), large_channel),
    )


@pytest.fixture(scope="module")
def windows(overflowing: Path) -> np.ndarray:
    checkpoint, _ = plan_export(Request(model=str(overflowing), bundle=Path("nowhere")))
    return token_windows(checkpoint, MAX_LENGTH, None).calibration


@pytest.fixture(scope="module")
def traced(overflowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ir.Model]:
    """Return a function that gives the optimised float16 graph, a new one each time."""

    def make(path: Path) -> None:
        request = Request(model=str(overflowing), bundle=Path("nowhere"), dtype="float16")
        model = export_module._trace(*plan_export(request)).model
        optimize(model)
        ir.save(model, path)

    file = once(tmp_path_factory, "float16/overflowing.onnx", make)
    return lambda: ir.load(file)


@pytest.fixture(scope="module")
def exported(overflowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        result = run(overflowing, path, "--fp16", "--max-length", MAX_LENGTH)
        assert result.exit_code == 0, result.stderr

    return once(tmp_path_factory, "float16/bundle", make)


def float32_logits(checkpoint: Path, tokens: np.ndarray) -> np.ndarray:
    """Of transformers, for one row of tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None]).logits[0].numpy()


def in_float16(
    model: ir.Model, tokens: np.ndarray, more: Mapping[str, np.ndarray] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """Every value of the graph, with results rounded to float16 as the graph says."""
    feeds = {
        INPUT_IDS: tokens[None],
        PAST_LENGTHS: np.zeros(1, np.int64),
        LOGITS_POSITIONS: np.arange(len(tokens))[None],
        **more,
    }
    for layer in range(2):
        for part in PARTS:
            feeds[past_name(layer, part)] = np.zeros((1, 2, len(tokens), 16), np.float16)
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    values: dict[str, np.ndarray] = evaluator.run(None, feeds, intermediate=True)
    return values


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float16_overflows_without_islands(
    overflowing: Path, traced: Callable[[], ir.Model], windows: np.ndarray
) -> None:
    half = AutoModelForCausalLM.from_pretrained(overflowing, dtype=torch.float16).eval()
    with torch.no_grad():
        logits = half(torch.from_numpy(windows[0])[None]).logits
    assert not logits.isfinite().all()
    assert not np.isfinite(in_float16(traced(), windows[0])[LOGITS]).all()
    assert np.isfinite(float32_logits(overflowing, windows[0])).all()


def test_with_islands_all_of_float16_is_finite(
    overflowing: Path, traced: Callable[[], ir.Model], windows: np.ndarray, tmp_path: Path
) -> None:
    model = traced()
    islands = keep_in_range(model, "tiny", list(windows), tmp_path)
    assert not list(tmp_path.iterdir())
    assert any("mlp" in name for name in islands)
    values = in_float16(model, windows[0])
    halves = {name for name, array in values.items() if np.asarray(array).dtype == np.float16}
    assert len(halves) > 20
    assert all(np.isfinite(values[name]).all() for name in halves)
    expected = float32_logits(overflowing, windows[0])
    error = np.abs(values[LOGITS][0].astype(np.float32) - expected).max()
    assert error < 0.02 * np.abs(expected).max()


def test_what_an_adapter_adds_beside_an_island_is_float32(
    overflowing: Path, traced: Callable[[], ir.Model], windows: np.ndarray, tmp_path: Path
) -> None:
    """Its first factor reads the large channel: x a leaves the range, and (x a) b doesn't."""
    model = traced()
    optimize(model, ["down_proj"])
    keep_in_range(model, "tiny", list(windows), tmp_path)
    adapter = {
        module.name: Factors(
            np.full((table.inputs, 1), 1.0, np.float32),
            np.full((1, module.outputs), SMALL**2, np.float32),
        )
        for table in lora_tables(model)
        for module in table.modules
    }
    inputs = AdapterTables(lora_tables(model), "float16", {"a": adapter}).inputs(adapted=True)
    values = in_float16(model, windows[0], {ADAPTER_IDS: np.ones(1, np.int64), **inputs})
    names = [name for name in values if f"{LAYER}.mlp.down_proj/lora" in name]
    assert max(np.abs(values[name]).max() for name in names) > 65504
    assert all(np.isfinite(np.asarray(values[name], np.float32)).all() for name in names)
    reference = AutoModelForCausalLM.from_pretrained(overflowing, dtype=torch.float32).eval()
    with adapted(reference, adapter):
        expected = reference_logits(reference, windows[0].tolist())
    assert np.abs(values[LOGITS][0] - expected).mean() < 0.02


def test_with_islands_the_check_finds_nothing(
    traced: Callable[[], ir.Model], windows: np.ndarray, tmp_path: Path
) -> None:
    model = traced()
    keep_in_range(model, "tiny", list(windows), tmp_path)
    halves = {
        node.name
        for node in model.graph
        if any(output.dtype == ir.DataType.FLOAT16 for output in node.outputs)
    }
    wide = model.clone()
    widen_floats(wide, ir.DataType.FLOAT16)
    ranges = activation_ranges(wide, list(windows[:2]), tmp_path)
    assert max(ranges.values()) > 65504
    assert max(ranges[name] for name in halves) <= LARGEST_SAFE
    assert keep_in_range(model, "tiny", list(windows), tmp_path) == []


def test_few_nodes_become_islands(
    traced: Callable[[], ir.Model], windows: np.ndarray, tmp_path: Path
) -> None:
    """The product of gate and up projection, what it is made of, and no other layer's."""
    model = traced()
    islands = keep_in_range(model, "tiny", list(windows), tmp_path)
    operators = {node.op_type for node in traced().graph if node.name in islands}
    assert operators == {"MatMul", "Split", "Mul"}
    assert len(islands) == 3


def test_the_export_passes_and_says_what_it_did(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    assert report["parity"]["status"] == "passed"
    assert report["quality"] is None  # the text is for the range: nobody asked for more
    names = report["float32_islands"]
    assert len(names) == 3
    markdown = (exported / "report.md").read_text()
    assert "leave it on calibration text: 3." in markdown
    assert all(f"- `{name}`" in markdown for name in names)


def test_the_tolerance_is_that_of_float16(exported: Path) -> None:
    """Although the model overflows in transformers' float16, from which it is taken otherwise."""
    parity = json.loads((exported / "report.json").read_text())["parity"]
    assert 0 < parity["tolerance_max"] < 0.05 * parity["largest_logit"]


def test_integer_weights_too(overflowing: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    result = run(overflowing, bundle, "--fp16", "--int8", "--max-length", MAX_LENGTH)
    assert result.exit_code == 0, result.stderr
    assert len(json.loads((bundle / "report.json").read_text())["float32_islands"]) == 3


def test_tensorrt_takes_the_islands(overflowing: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = tmp_path / "bundle"
    options = ("--fp16", "--target", "tensorrt-rtx", "--max-length", MAX_LENGTH)
    result = run(overflowing, bundle, *options)
    assert result.exit_code == 0, result.stderr
    assert (bundle / "model.tensorrt-rtx.engine").stat().st_size > 100_000
    assert len(json.loads((bundle / "report.json").read_text())["float32_islands"]) == 3


def test_a_buffer_out_of_range_is_refused(tmp_path: Path) -> None:
    model = scale_weights(make_checkpoint("llama", tmp_path / "model"), large_values)
    said = refusal(tmp_path, model, tmp_path / "bundle", "--fp16", "--max-length", MAX_LENGTH)
    assert "TensorScatter" in said
    assert said.endswith("use float32, or --bf16 for a TensorRT target.")


def test_masks_are_no_reason(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """bloom's positions are a bias with float16's smallest number where nothing may be read."""
    bundle = tmp_path / "bundle"
    result = run(checkpoint("bloom"), bundle, "--fp16", "--max-length", MAX_LENGTH)
    assert result.exit_code == 0, result.stderr
    assert json.loads((bundle / "report.json").read_text())["float32_islands"] == []
    assert "Nothing came near it" in (bundle / "report.md").read_text()
