"""LoRA adapters in the files that PEFT saves, and checkpoints with these merged in.

Written from PEFT's documented format: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Weights = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""lora_A [rank, in] and lora_B [out, rank] of each module."""


def random_weights(
    shapes: Mapping[str, tuple[int, int]], rank: int, *, seed: int = 0, size: float = 0.3
) -> Weights:
    """Factors of modules with so many inputs and outputs; ``size`` is about what they add."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, inputs, generator=generator) * inputs**-0.5,
            torch.randn(outputs, rank, generator=generator) * size * rank**-0.5,
        )
        for name, (inputs, outputs) in shapes.items()
    }


def write_adapter(
    directory: Path,
    weights: Weights,
    *,
    more: Mapping[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """Write an adapter whose ``config`` differs so from PEFT's defaults; ``more`` are tensors."""
    rank = next(iter(weights.values()))[0].shape[0]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in weights}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layer_replication": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
        "lora_bias": False,
    }
    tensors = dict(more or {})
    for name, (a, b) in weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(settings | config))
    return directory


@contextmanager
def merged_into(
    model: PreTrainedModel, weights: Weights | None, scale: float = 1.0
) -> Iterator[None]:
    """Let the weights of ``model`` have ``scale`` times B A added, and be restored afterwards."""
    before = {}
    for name, (a, b) in (weights or {}).items():
        module = model.get_submodule(name)
        before[name] = module.weight.data
        delta = scale * (b @ a)
        module.weight.data = before[name] + (delta.T if isinstance(module, Conv1D) else delta)
    yield
    for name, weight in before.items():
        model.get_submodule(name).weight.data = weight
