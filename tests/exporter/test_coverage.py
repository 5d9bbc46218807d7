"""Coverage: one type for each trait through the script's own path, and the table of all."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from engines.tensorrt.builder import engine_file
from scripts.coverage import TABLE, make_tiny, registered_types, try_type
from scripts.coverage_engines import RECIPES, TARGET, build_each
from scripts.coverage_table import table_engines, table_types
from scripts.processes import run_each
from tests.checkpoints import make_checkpoint

# Trait -> a type that has it. None of them is among the architectures that other tests export.
EXACT = {
    "experts beside shared ones, and a router's correction": "glm4_moe",
    "position offset by the padding id": "roberta",
    "decoder of an encoder-decoder model that counts positions itself": "bart",
    "keys and values of different size, complex rotation": "deepseek_v2",
    "two attentions a layer": "diffllama",
    "a table that is assigned while running": "ctrl",
    "layers that share a cache": "gemma4_text",
    "a larger model whose language part is exported": "got_ocr2",
    "windows on some layers and sinks": "mimo_v2_flash",
}
REFUSED = {
    "mamba": "recurrent state",
    "jamba": "recurrent state",
    "qwen3_next": "recurrent state",
    "deepseek_v32": "sparse attention",
    "openai-gpt": "no key-value cache",
}
# Traits that TensorRT's parser and kernels could stumble over -> an architecture that has them.
BUILT = {
    "ALiBi": "bloom",
    "soft cap and windows": "gemma2",
    "experts, sinks and windows": "gpt_oss",
    "learned positions": "opt",
}


@pytest.mark.parametrize("model_type", EXACT.values(), ids=EXACT.keys())
def test_one_type_of_each_trait_is_exact(model_type: str) -> None:
    outcome = try_type(model_type)
    assert (outcome.status, outcome.reason) in (
        ("exact", ""),
        ("exact", "transformers' generate differs from its own forward, which is what is served"),
    )


@pytest.mark.parametrize(("model_type", "reason"), REFUSED.items())
def test_refusals_say_why(model_type: str, reason: str) -> None:
    outcome = try_type(model_type)
    assert outcome.status == "refused"
    assert reason in outcome.reason


def test_every_registered_type_is_in_the_table() -> None:
    table = table_types(TABLE)
    missing = set(registered_types()) - set(table)
    assert not missing, f"run `python -m scripts.coverage --only {','.join(sorted(missing))}`"
    assert list(table.values()).count("exact") >= 110
    assert all(table[model_type] == "exact" for model_type in EXACT.values())
    assert all(table[model_type] == "refused" for model_type in REFUSED)


def assert_builds(checkpoint: Path, directory: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert build_each(checkpoint, directory) == {"fp16": "", "int8": ""}
    for precision in RECIPES:
        assert (directory / precision / engine_file(TARGET)).stat().st_size > 100_000


@pytest.mark.parametrize("architecture", BUILT.values(), ids=BUILT.keys())
def test_engines_of_each_trait_are_built(architecture: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(architecture, tmp_path / architecture, num_hidden_layers=1)
    assert_builds(checkpoint, tmp_path)


def test_engines_of_joint_projections_and_partial_rotation_are_built(tmp_path: Path) -> None:
    make_tiny("persimmon", tmp_path / "persimmon")
    assert_builds(tmp_path / "persimmon", tmp_path)


def test_a_crash_or_a_hang_in_a_build_is_a_result() -> None:
    def attempt(name: str) -> str:
        if name == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "hangs":
            time.sleep(60)
        return "builds"

    names = ("crashes", "hangs", "builds")
    ended = run_each(names, attempt, lambda name, why: f"{name}: {why}", limit=3.0)
    assert [result for _, result, _ in ended] == [
        "crashes: its process died (exit code -9)",
        "hangs: it takes more than 3 s",
        "builds",
    ]


def test_every_exact_type_has_an_engine_of_each_precision_or_a_reason() -> None:
    status = table_types(TABLE)
    for model_type, (engines, notes) in table_engines(TABLE).items():
        if status[model_type] != "exact":
            assert not any(engines.values()), model_type
            continue
        for precision, end in engines.items():
            assert end in ("built", "refused"), f"run `python -m scripts.coverage` ({model_type})"
            reason = re.search(rf"no ([A-Z0-9]+ or )*{precision.upper()}.* engine: .", notes)
            assert (reason is not None) == (end == "refused"), model_type
