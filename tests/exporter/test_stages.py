"""Exporting in stages: the tokens of transformers, and of the engine in one piece."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import serving
from engines.quantization.apply import quantize
from engines.quantization.recipe import Recipe
from engines.standard import optimize
from exporter import export as export_module
from exporter.building import build_engines, graph_info
from exporter.export import Request, plan_export
from exporter.gate import lowering_breach
from exporter.plan import Plan
from exporter.staging import build_stages
from serving.bundle import SpecialTokens, open_bundle
from serving.cli import main as serve_llm
from serving.generation import Model
from serving.pipeline import PipelineEngine
from tests.checkpoints import VOCABULARY, WINDOW, make_checkpoint
from tests.exporter.commands import contents, refusal, run

NEW_TOKENS = 64
LENGTHS = (21, 9, 14)
TIED = {"tie_word_embeddings": True}
KINDS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def ragged_prompts() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(3, VOCABULARY, length).tolist() for length in LENGTHS]


def greedy(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates from each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        tokens.append(output[0, len(prompt) :].tolist())
    return tokens


def staged_tokens(
    model: ir.Model, plan: Plan, prompts: list[list[int]], directory: Path
) -> dict[int, list[list[int]]]:
    """What engines in 1, 2 and 3 stages generate, with a slot fewer than there are prompts."""
    tokens = {}
    graph = graph_info(model, plan)
    for stages in (1, 2, 3):
        partial = directory / str(stages)
        partial.mkdir(parents=True)
        build = build_stages if stages > 1 else build_engines
        _, (subject,) = build(model.clone(), partial, graph, replace(plan, stages=stages))
        engine = subject.open(slots=len(prompts) - 1, capacity=max(LENGTHS) + NEW_TOKENS)
        assert isinstance(engine, PipelineEngine) == (stages > 1)
        with Model(engine, SpecialTokens(), None, None, prefill_chunk=5) as served:
            results = served.generate(prompts, max_new_tokens=NEW_TOKENS)
        tokens[stages] = [result.token_ids for result in results]
    return tokens


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("gpt2", {}),  # learned positions, tied embeddings
        ("qwen2", TIED),
        ("gemma3", KINDS),  # windows, two rotary tables
        ("gpt_neox", {}),  # attention and MLP side by side
    ],
)
def test_stages_generate_what_transformers_does(
    architecture: str, config: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(
        architecture, tmp_path / "checkpoint", num_hidden_layers=3, **config
    )
    found, plan = plan_export(Request(model=str(checkpoint), bundle=tmp_path / "bundle"))
    traced = export_module._trace(found, plan).model
    optimize(traced)
    assert min(LENGTHS) > WINDOW
    prompts = ragged_prompts()
    tokens = staged_tokens(traced, plan, prompts, tmp_path / "float32")
    assert tokens == dict.fromkeys((1, 2, 3), greedy(checkpoint, prompts))
    # Rounded weights have no reference but the graph in one piece.
    recipe = Recipe(bits=8)
    quantize(traced, recipe, [], tmp_path)
    rounded = staged_tokens(traced, replace(plan, recipe=recipe), prompts, tmp_path / "int8")
    assert rounded[1] == rounded[2] == rounded[3]


def test_the_command_quantises_checks_and_packs_stages(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("qwen2", tmp_path / "checkpoint", num_hidden_layers=3, **TIED)
    bundle = tmp_path / "bundle"
    result = run(checkpoint, bundle, "--int8", "--max-length", 100, "--stages", 2)
    assert result.exit_code == 0, result.output
    with serving.load(bundle, threads=1) as model:
        assert isinstance(model.engine, PipelineEngine)
        assert len(model.generate([1, 2, 3], max_new_tokens=5).token_ids) == 5
        size = model.engine.weight_bytes
        for stage in model.engine._stages:  # idle threads don't hold the cores of the next stage
            options = stage._session.get_session_options()
            assert options.get_session_config_entry("session.force_spinning_stop") == "1"

    manifest = open_bundle(bundle).manifest
    (engine,) = manifest.engines
    assert [(s.file, s.first_layer, s.layers) for s in engine.stages] == [
        ("stage-0/model.onnx", 0, 2),
        ("stage-1/model.onnx", 2, 1),
    ]
    assert engine.weight_bytes == size == sum(stage.weight_bytes for stage in engine.stages)
    data = [manifest.files[f"stage-{k}/model.onnx.data"].size for k in (0, 1)]
    assert [stage.weight_bytes for stage in engine.stages] == data
    assert sorted(name for name in manifest.files if "onnx" in name) == [
        f"stage-{k}/model.onnx{data}" for k in (0, 1) for data in ("", ".data")
    ]
    report = (bundle / "report.md").read_text()
    assert f"| stage-1/model.onnx | layer 2 | {data[1]:,} bytes |" in report
    assert "the engine in 2 stages" in report
    shown = CliRunner().invoke(serve_llm, ["inspect", str(bundle)]).output
    assert "layers 0 to 1" in shown
    assert "layer 2" in shown


def test_the_lowering_check_runs_the_stages(
    traced: Callable[[], ir.Model], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    request = Request(
        model=str(checkpoint("mistral")),
        bundle=tmp_path / "bundle",
        recipe=Recipe(bits=8),
        stages=2,
    )
    _, plan = plan_export(request)
    model = traced()
    optimize(model)
    quantize(model, plan.recipe, [], tmp_path)
    _, (subject,) = build_stages(model, tmp_path, graph_info(model, plan), plan)
    tokens = np.arange(40)
    assert lowering_breach(subject, tokens) is None
    weights = tmp_path / "stage-1" / "model.onnx.data"
    weights.write_bytes(bytes(weights.stat().st_size))
    said = lowering_breach(subject, tokens)
    assert said is not None
    assert "off those of the quantised graph" in said
    subject.remove()
    assert contents(tmp_path).keys() == {
        *("stage-0", "stage-0/model.onnx", "stage-0/model.onnx.data"),
        *("stage-1", "stage-1/model.onnx", "stage-1/model.onnx.data"),
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--stages", 0), "--stages 0 isn't possible: give at least 1."),
        (("--stages", 3), "--stages 3 isn't possible: each stage needs a layer .* there are 2."),
        (("--stages", 2, "--prune-layers", 1), "there are 1."),
        (("--stages", 2, "--bisect"), "leave --stages out"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_any_work(
    checkpoint: Callable[[str], Path], tmp_path: Path, options: tuple[object, ...], says: str
) -> None:
    said = refusal(tmp_path, checkpoint("llama"), tmp_path / "bundle", *options)
    assert re.search(says, said)
