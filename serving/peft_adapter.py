"""Reading LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

The format: https://huggingface.co/docs/peft/developer_guides/checkpoint. A module's factors are
``base_model.model.{path}.lora_A.weight`` [rank, in] and ``.lora_B.weight`` [out, rank], also where
its weight is stored [in, out]. What this doesn't carry over is refused, never ignored.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.bundle import LoraTable
from serving.checkpoint_weights import Matrix, Part, open_file, tensor_names
from serving.errors import UserError
from serving.lora import Adapter, Factors, Floats

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# Settings that change what an adapter computes, apart from its factors and their scale.
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases",
    "modules_to_save": "whole modules beside the factors (modules_to_save)",
    "layer_replication": "layers that are repeated (layer_replication)",
    "trainable_token_indices": "token embeddings (trainable_token_indices)",
    "target_parameters": "factors of experts (target_parameters)",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA",
}
# Initialisations that move a part of the base model's weights into the adapter.
_MOVES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_adapter(directory: Path, tables: Sequence[LoraTable]) -> Adapter:
    """Read an adapter for a graph with these tables.

    Raises UserError if files are missing or damaged, or the adapter has what the graph can't take.
    """
    config = _read_config(directory)
    _refuse_settings(directory, config)
    sizes = {m.name: (table.inputs, m.outputs) for table in tables for m in table.modules}
    found: dict[str, dict[str, Matrix | None]] = {}
    file = directory / _WEIGHTS
    matrices = open_file(file)
    for name in tensor_names(file):
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise UserError(
                f"The adapter {str(directory)!r} has {name}, which is no LoRA factor of a linear "
                "layer: train it without."
            )
        found.setdefault(match["module"], {})[match["factor"]] = matrices.get(name)
    adapter = {}
    for module, factors in found.items():
        if module not in sizes:
            raise UserError(
                f"The adapter {str(directory)!r} changes {module}, which the bundle has no inputs "
                "for: see serve-llm inspect, and export with --lora-modules that name it."
            )
        adapter[module] = _factors(directory, module, factors, sizes[module], config)
    if not adapter:
        raise UserError(f"The adapter {str(directory)!r} has no factors: train it first.")
    return adapter


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / _CONFIG
    if not file.is_file():
        raise UserError(
            f"{str(directory)!r} is no adapter, it has no {_CONFIG}: give the directory that PEFT "
            "saved it to."
        )
    if not (directory / _WEIGHTS).is_file():
        raise UserError(
            f"The adapter {str(directory)!r} has no {_WEIGHTS}: save it again in the safetensors "
            "format."
        )
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(file)!r} can't be read ({error}): get it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{str(file)!r} isn't a JSON object: get it again.")
    return config


def _refuse_settings(directory: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{str(directory)!r} is an adapter of type {kind}: only LoRA can be used.")
    refused = [what for setting, what in _REFUSED.items() if config.get(setting)]
    if config.get("bias", "none") != "none":
        refused.append("biases")
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(_MOVES_WEIGHTS):
        refused.append(f"a part of the base model's weights (init_lora_weights {initial})")
    if refused:
        raise UserError(
            f"The adapter {str(directory)!r} has {refused[0]}, which isn't supported: train it "
            "without, or merge it into the checkpoint and export that."
        )


def _factors(
    directory: Path,
    module: str,
    matrices: Mapping[str, Matrix | None],
    sizes: tuple[int, int],
    config: Mapping[str, Any],
) -> Factors:
    """A module's factors, with the scale in b."""
    inputs, outputs = sizes
    try:
        rank, scale = rank_and_scale(module, config)
    except (KeyError, TypeError, ValueError, ArithmeticError, re.error) as error:
        raise UserError(
            f"{str(directory / _CONFIG)!r} gives no rank and scale for {module} ({error!r}): get "
            "it again."
        ) from error
    wanted = {"A": (rank, inputs), "B": (outputs, rank)}
    transposed: dict[str, Floats] = {}
    for factor, shape in wanted.items():
        matrix = matrices.get(factor)
        if matrix is None or matrix.stored.shape != shape:
            has = "none" if matrix is None else f"{list(matrix.stored.shape)}"
            raise UserError(
                f"The adapter {str(directory)!r} is for another model: lora_{factor} of {module} "
                f"should be {list(shape)} and is {has}."
            )
        whole = Part(True, 0, 0, *matrix.shape(True))
        transposed[factor] = matrix.bits(whole, "float32").view(np.float32)
        if not np.isfinite(transposed[factor]).all():
            raise UserError(
                f"The adapter {str(directory)!r} has values that are NaN or infinite in {module}: "
                "train it again."
            )
    return Factors(transposed["A"], transposed["B"] * np.float32(scale))


def rank_and_scale(module: str, config: Mapping[str, Any]) -> tuple[int, float]:
    """The rank of a module and what its product is scaled by.

    Patterns name modules by the end of their path, or by regular expressions for it; the first that
    matches counts. rsLoRA (Kalajdzievski, 2023) divides by the rank's square root.
    """
    rank = int(_by_pattern(module, config.get("rank_pattern"), config["r"]))
    alpha = float(_by_pattern(module, config.get("alpha_pattern"), config["lora_alpha"]))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(module: str, patterns: Mapping[str, Any] | None, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default
