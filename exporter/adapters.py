"""LoRA adapters of an export: the layers that take them, and random ones for the gates."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engines.quantization.recipe import Recipe
from serving.bundle import GraphInfo, LoraTable, Target
from serving.errors import UserError
from serving.lora import Adapter, AdapterTables, Factors

_SEED = 20210617
_RANKS = (3, 5)
_STRENGTH = 0.1  # of what an adapter adds, beside a layer's input


def adapted_modules(model: PreTrainedModel, wanted: Sequence[str]) -> tuple[str, ...]:
    """The last names of the linear layers that shall take adapters; all where none is ``wanted``.

    The LM head isn't among them. Raises UserError for a name that no linear layer has.
    """
    head = model.get_output_embeddings()
    names = {
        path.rpartition(".")[2]: None
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    for name in wanted:
        if name not in names:
            raise UserError(
                f"--lora-modules names {name}, which is no linear layer of this model's decoder: "
                f"choose of {', '.join(names)}."
            )
    return tuple(wanted or names)


def refuse_adapters(
    recipe: Recipe, targets: Sequence[Target], *, stages: int, ranks: int, prunes: bool
) -> None:
    """Raise UserError for what adapters can't be combined with."""
    if any(target != "onnxruntime" for target in targets):
        raise UserError("--lora is for ONNX Runtime on the CPU: leave --target out.")
    if stages > 1 or ranks > 1:
        raise UserError("--lora is for engines in one piece: leave --stages out.")
    if prunes:
        raise UserError(
            "--lora is for whole layers, as adapters are trained for them: leave out what prunes."
        )
    if recipe.bits is not None and recipe.weight_method == "awq":
        raise UserError(
            "--method awq scales the activations that adapters read: use gptq or round-to-nearest "
            "with --lora."
        )


def refuse_lost(tables: Sequence[LoraTable], wanted: Sequence[str]) -> None:
    """Raise ValueError where a graph has no inputs for a layer that the user named."""
    found = {module.name.rpartition(".")[2] for table in tables for module in table.modules}
    lost = [name for name in wanted if name not in found]
    if lost or not tables:
        raise ValueError(f"adapters can't be added beside {', '.join(lost) or 'its layers'}")


def random_adapters(graph: GraphInfo) -> list[Adapter]:
    """Two adapters of different rank, of which the second leaves every other module as it is."""
    random = np.random.default_rng(_SEED)
    adapters: list[Adapter] = []
    for step, rank in enumerate(_RANKS, 1):
        modules = [(table.inputs, module) for table in graph.lora for module in table.modules]
        adapters.append(
            {
                module.name: Factors(
                    _normal(random, (inputs, rank), inputs**-0.5),
                    _normal(random, (rank, module.outputs), _STRENGTH * rank**-0.5),
                )
                for inputs, module in modules[::step]
            }
        )
    return adapters


def gate_tables(graph: GraphInfo) -> AdapterTables | None:
    """The random adapters as an engine takes them, or None for a graph that takes none."""
    if not graph.lora:
        return None
    named = {f"random {index}": adapter for index, adapter in enumerate(random_adapters(graph))}
    return AdapterTables(graph.lora, graph.dtype, named)


@contextmanager
def adapted(model: PreTrainedModel, adapter: Adapter | None) -> Iterator[None]:
    """Let the modules of ``model`` add what an adapter says to their results.

    The weights stay as they are: merging the adapter into them would take their memory twice.
    """
    with ExitStack() as hooks:
        for path, factors in (adapter or {}).items():
            a, b = torch.from_numpy(factors.a), torch.from_numpy(factors.b)

            def add(
                _: nn.Module, inputs: Any, result: Any, a: torch.Tensor = a, b: torch.Tensor = b
            ) -> Any:
                return result + inputs[0] @ a.to(result.dtype) @ b.to(result.dtype)

            hook = model.get_submodule(path).register_forward_hook(add)
            hooks.callback(hook.remove)
        yield


def adapters_markdown(tables: Sequence[LoraTable]) -> list[str]:
    """The lines of report.md, from the heading on."""
    counts: dict[str, int] = {}
    for table in tables:
        for module in table.modules:
            name = module.name.rpartition(".")[2]
            counts[name] = counts.get(name, 0) + 1
    modules = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return ["## LoRA adapters", "", f"Layers that take them: {modules}."]


def _normal(random: np.random.Generator, shape: tuple[int, int], scale: float) -> Any:
    return random.normal(0, scale, shape).astype(np.float32)
