"""Loading an encoder with the head of its task, and accounting for every weight."""

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from exporter.checkpoint import Checkpoint, and_others, first_line, refuse_mismatched
from exporter.encoders.tasks import AUTO_CLASSES, find_task
from serving.encoders.contract import Task
from serving.errors import UserError


@dataclass(frozen=True)
class LoadedEncoder:
    """A model with its task's head.

    ``missing`` are weights that the checkpoint doesn't have: a graph that reads one is refused.
    ``unused`` are stored ones that this task has no use for, such as another head's.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_encoder(checkpoint: Checkpoint, task: Task, dtype: torch.dtype) -> LoadedEncoder:
    """Load all weights in ``dtype``.

    Raises UserError if the checkpoint lacks the task's head, or has weights that don't fit.
    """
    try:
        model, info = AUTO_CLASSES[task].from_pretrained(
            checkpoint.directory,
            config=checkpoint.config,
            dtype=dtype,
            trust_remote_code=checkpoint.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{checkpoint.name} can't be loaded: {first_line(error)}.") from error
    refuse_mismatched(checkpoint, info)
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    # Embeddings have no use for a pooler, and most checkpoints don't have one.
    needed = [name for name in missing if task != "embed" or not name.startswith("pooler.")]
    refuse_missing(checkpoint, task, needed)
    _refuse_lost_layers(checkpoint, model, unused)
    return LoadedEncoder(model.eval(), tuple(missing), tuple(unused))


def empty_encoder(checkpoint: Checkpoint, task: Task) -> PreTrainedModel:
    """The model without memory for its weights; raises UserError if it can't be built."""
    try:
        with FakeTensorMode(), no_init_weights():
            model: PreTrainedModel = AUTO_CLASSES[task].from_config(
                checkpoint.config, trust_remote_code=checkpoint.trust_remote_code
            )
            return model.eval()
    except Exception as error:  # each architecture checks its config in its own way
        raise UserError(
            f"transformers can't build {checkpoint.name} for {task} ({first_line(error)}): choose "
            "another --task, or get config.json again."
        ) from error


def refuse_missing(checkpoint: Checkpoint, task: Task, missing: list[str]) -> None:
    """Raise UserError where the graph of a task would have weights that nobody trained."""
    if not missing:
        return
    own = find_task(checkpoint.directory)
    advice = f"its own task is {own}" if own and own != task else "get the complete checkpoint"
    raise UserError(
        f"{checkpoint.name} has no weights for {missing[0]}{and_others(len(missing))}, which "
        f"{task} needs, and a head that nobody trained is no use: {advice}."
    )


def _refuse_lost_layers(checkpoint: Checkpoint, model: PreTrainedModel, unused: list[str]) -> None:
    """Raise UserError if stored weights of the encoder itself would be left out."""
    base: Any = getattr(model, model.base_model_prefix, model)
    parts = {name for name, _ in base.named_children()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    lost = [name for name in unused if name.removeprefix(prefix).split(".")[0] in parts]
    if lost:
        raise UserError(
            f"{checkpoint.name} has weights that {type(model).__name__} doesn't use: {lost[0]}"
            f"{and_others(len(lost))}; config.json is for another model."
        )
