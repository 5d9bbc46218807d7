"""Bad input to ``export-llm``: one clear sentence, exit code not 0, and nothing left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import POSITIONS
from tests.exporter.commands import refusal

Damage = Callable[[Path], None]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def damaged(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of its own to damage."""
    return shutil.copytree(checkpoint("llama"), tmp_path / "model")


def change_config(**changes: Any) -> Damage:
    def damage(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def replace(name: str, text: str) -> Damage:
    def damage(model: Path) -> None:
        (model / name).write_text(text)

    return damage


def remove(name: str) -> Damage:
    return lambda model: (model / name).unlink()


def truncate(model: Path) -> None:
    size = (model / WEIGHTS).stat().st_size
    os.truncate(model / WEIGHTS, size - 1)


def lose_a_shard(model: Path) -> None:
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    stored = load_file(model / "model-00001-of-00002.safetensors")
    index = dict.fromkeys(stored, "model-00001-of-00002.safetensors")
    index["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def break_index(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / INDEX).write_text("{}")


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(model: Path) -> None:
        tensors = load_file(model / WEIGHTS)
        change(tensors)
        save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})

    return damage


RTX = ("--target", "tensorrt-rtx")
NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove("config.json"), "is no checkpoint, it has no config.json: check the path."),
        (replace("config.json", "{"), "isn't valid JSON"),
        (replace("config.json", "[]"), "isn't a JSON object: get it again."),
        (replace("config.json", "{}"), "names no model_type"),
        (remove(WEIGHTS), "has no weights in the safetensors format"),
        (break_index, f"{INDEX} has no weight_map: get it again."),
        (lose_a_shard, f"lacks model-00002-of-00002.safetensors, which {INDEX} lists: get that"),
        (truncate, f"{WEIGHTS} is truncated or damaged"),
        (replace(WEIGHTS, ""), f"{WEIGHTS} is truncated or damaged"),
        (
            change_config(intermediate_size=96),
            "is stored as [64, 128] and config.json asks for [64, 96] and 5 more; fix config.json",
        ),
        (
            change_weights(lambda tensors: tensors.pop(NORM)),
            f"has no weights for {NORM}, which LlamaConfig needs: get the complete checkpoint.",
        ),
        (
            change_config(num_hidden_layers=3),
            "has no weights for model.layers.2.input_layernorm.weight and 8 more",
        ),
        (
            change_weights(lambda tensors: tensors[NORM][5:6].fill_(torch.nan)),
            f"{NORM} has values that are NaN or infinite: get {WEIGHTS} of model again",
        ),
        (
            change_weights(lambda tensors: tensors[NORM][5:6].fill_(-torch.inf)),
            f"{NORM} has values that are NaN or infinite",
        ),
        (
            change_weights(lambda tensors: tensors.update(extra=torch.zeros(2))),
            "has weights that LlamaConfig doesn't use: extra; config.json is for another model.",
        ),
        (change_config(num_hidden_layers=1), "and 8 more; config.json is for another model."),
        (change_config(num_attention_heads=3), "is not a multiple of the number of attention"),
        (change_config(hidden_size="x"), "expected int, got str"),
        (change_config(hidden_act="nonsense"), "transformers can't build model from its config"),
        (change_config(model_type="llamazilla"), "'llamazilla', which transformers"),
        (change_config(model_type="vit"), "'vit', which is no decoder"),
        (change_config(model_type="bert"), "it is an encoder, and only decoders generate."),
        (change_config(model_type="mamba"), "'mamba', which can't be exported: it has layers with"),
        (
            change_config(auto_map={"AutoModelForCausalLM": "code.Model"}),
            "brings code of its own: read it, then pass --trust-remote-code to run it.",
        ),
    ],
)
def test_bad_checkpoint(damaged: Path, tmp_path: Path, damage: Damage, says: str) -> None:
    damage(damaged)
    assert says in refusal(tmp_path, damaged, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-length", "1"], f"takes from 2 to {POSITIONS} tokens"),
        (["--max-length", str(POSITIONS + 1)], f"takes from 2 to {POSITIONS} tokens"),
        (["--bf16"], "no bfloat16 kernels for the CPU"),
        (["--prefill-chunk", "8"], "--prefill-chunk sizes a TensorRT engine"),
        ([*RTX, "--prefill-chunk", str(POSITIONS + 1)], f"takes from 1 to {POSITIONS} tokens."),
        ([*RTX, "--prefill-chunk", "0"], f"this engine takes from 1 to {POSITIONS} tokens."),
        (["--compute-capability", "8.6"], "add --target tensorrt-rtx."),
        (
            [*RTX, "--compute-capability", "8.6,9.0"],
            "9.0 isn't known to tensorrt-rtx: choose from 7.5, 8.0, 8.6, 8.9, 12.0, 12.1.",
        ),
        ([*RTX, "--compute-capability", ""], "'' isn't known to tensorrt-rtx"),
        ([*RTX, "--bf16", "--compute-capability", "7.5"], "7.5 have no bfloat16"),
        ([*RTX, "--version-compatible"], "add --target tensorrt."),
        ([*RTX, "--hardware-compatibility", "none"], "add --target tensorrt."),
    ],
)
def test_options_that_cannot_be(
    checkpoint: Callable[[str], Path], tmp_path: Path, options: list[str], says: str
) -> None:
    assert says in refusal(tmp_path, checkpoint("llama"), tmp_path / "bundle", *options)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prune-layers", "2"], "would remove all 2 layers"),
        (
            ["--int4", "--group-size", "128"],
            "A group size of 128 doesn't divide the 64 inputs of",
        ),
    ],
)
def test_what_the_config_forbids_is_said_before_tracing(
    architecture: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    options: list[str],
    says: str,
) -> None:
    model = checkpoint(architecture)
    assert says in refusal(tmp_path, model, tmp_path / "bundle", "--dry-run", *options)


def test_no_such_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file: give the directory" in refusal(tmp_path, file, bundle)
    nowhere = tmp_path / "nowhere"
    assert "no hub id either: check the path" in refusal(tmp_path, nowhere, bundle)

    # Nothing listens on port 9 (discard), so the hub can't be reached from here.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    said = refusal(tmp_path, "someone/nothing", bundle)
    assert said.startswith("There is no directory someone/nothing, and the hub can't be reached")
    assert said.endswith("check the spelling and the connection.")


def test_bundle_that_exists(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "thesis.txt").write_text("years of work")
    said = refusal(tmp_path, checkpoint("llama"), bundle)
    assert said == f"{bundle} exists: choose another name, or pass --force to replace it."
    said = refusal(tmp_path, checkpoint("llama"), bundle, "--force")
    assert said == f"{bundle} exists and is no bundle, so --force leaves it alone."
    said = refusal(tmp_path, checkpoint("llama"), bundle / "thesis.txt" / "bundle")
    assert "can't be made (part of its path is a file)" in said


def test_too_little_space(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    said = refusal(tmp_path, checkpoint("llama"), tmp_path / "new" / "bundle")
    assert said.endswith("has 10 MB free: make room or choose another disk.")
