"""What the export of an encoder will do, decided and checked before any weight is read."""

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from engines.quantization.recipe import Recipe
from engines.targets import refuse_for_targets
from engines.tensorrt.options import BuildOptions, refuse_options
from exporter.checkpoint import Checkpoint
from exporter.encoders.loading import empty_encoder
from exporter.encoders.tasks import SentenceSettings, find_task, sentence_settings
from exporter.encoders.tracing import takes_token_types
from exporter.lengths import longest_sequence
from exporter.plan import ELEMENT_BYTES, UNLIMITED, check_disk, megabytes, refusal
from serving.bundle import DType, Target
from serving.contract import INPUT_IDS
from serving.encoders.contract import Task
from serving.errors import UserError


@dataclass(frozen=True)
class EncoderPlan:
    """The export's parameters and what they will cost, in bytes."""

    model: str
    architecture: str
    task: Task
    task_source: str
    sentences: SentenceSettings
    parameters: int
    dtype: DType
    targets: tuple[Target, ...]
    max_length: int
    longest: int | None
    """Most tokens that the model has positions for, if it says so."""
    batch: int
    build_options: BuildOptions
    recipe: Recipe
    token_types: bool
    weight_bytes: int
    disk: int

    @property
    def precision(self) -> str:
        """The types of weights and activations in a few words."""
        return ", ".join(filter(None, (self.dtype, self.recipe.describe())))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What ``--dry-run`` prints."""
        yield "architecture", f"{self.architecture}, {self.parameters:,} parameters"
        yield "task", f"{self.task} ({self.task_source})"
        if self.task == "embed":
            length = ", of length 1" if self.sentences.normalize else ""
            yield "embeddings", f"{self.sentences.pooling}{length} ({self.sentences.source})"
        yield "precision", self.precision
        yield "targets", ", ".join(self.targets)
        yield "most tokens", f"{self.max_length:,}"
        yield "weights", megabytes(self.weight_bytes)
        yield "disk", f"about {megabytes(self.disk)}"


def make_encoder_plan(
    checkpoint: Checkpoint,
    bundle: Path,
    *,
    task: Task | None,
    dtype: DType,
    targets: tuple[Target, ...],
    max_length: int | None,
    batch: int,
    build_options: BuildOptions,
    recipe: Recipe,
) -> EncoderPlan:
    """Decide task, length and limits and estimate costs.

    Raises UserError for combinations that can't work, a checkpoint without a task and too little
    disk space.
    """
    _refuse(dtype, recipe, checkpoint)
    refuse_for_targets(recipe, targets)
    own = find_task(checkpoint.directory)
    chosen = task or own
    if chosen is None:
        raise UserError(
            f"Nothing in {checkpoint.name} says what it is for: give --task, such as --task embed."
        )
    if checkpoint.config.is_encoder_decoder:
        raise refusal(checkpoint, "it is an encoder and a decoder, and only one of the two can be")
    model = empty_encoder(checkpoint, chosen)
    if INPUT_IDS not in inspect.signature(model.forward).parameters:
        raise refusal(checkpoint, f"without its head it takes something else than {INPUT_IDS}")
    is_embed = chosen == "embed"
    sentences = sentence_settings(checkpoint.directory) if is_embed else SentenceSettings()
    longest = longest_text(model)
    most_tokens = _limit(max_length, longest, sentences.max_length)
    refuse_options(build_options, None, targets=targets, dtype=dtype, max_length=most_tokens)
    parameters = sum({id(p): p.numel() for p in model.parameters()}.values())
    weight_bytes = parameters * ELEMENT_BYTES[dtype]
    # An engine a target, the graph that is compared with transformers, and what surrounds them.
    disk = weight_bytes * (len(targets) + 2) + 20_000_000
    check_disk(bundle, disk)
    return EncoderPlan(
        model=checkpoint.name,
        architecture=checkpoint.config.model_type,
        task=chosen,
        task_source="--task" if task else "the checkpoint's head",
        sentences=sentences,
        parameters=parameters,
        dtype=dtype,
        targets=targets,
        max_length=most_tokens,
        longest=longest,
        batch=batch,
        build_options=build_options,
        recipe=recipe,
        token_types=takes_token_types(model),
        weight_bytes=weight_bytes,
        disk=disk,
    )


def _refuse(dtype: DType, recipe: Recipe, checkpoint: Checkpoint) -> None:
    if dtype == "bfloat16":
        raise UserError("Encoders are exported in float32 or with --fp16: leave --bf16 out.")
    if recipe.kv_cache:
        raise UserError("An encoder has no KV cache: leave --int8-kv out.")
    if recipe.bits is not None and recipe.bits != 8:
        raise UserError(
            "Encoders are quantised to 8 bits: use --w8a8 or --int8, or leave --int4 and --bits "
            "out."
        )
    if checkpoint.packing is not None:
        raise UserError(
            f"{checkpoint.name} is quantised already: export the checkpoint that it was made from."
        )


def _limit(wanted: int | None, longest: int | None, trained: int | None) -> int:
    """The most tokens of a text."""
    most = longest or UNLIMITED
    if wanted is None:
        return min(trained or most, most)
    if not 2 <= wanted <= most:
        raise UserError(
            f"--max-length {wanted} isn't possible: this model takes from 2 to {most} tokens."
        )
    return wanted


def longest_text(model: PreTrainedModel) -> int | None:
    """Most tokens that ``model`` has positions for; None where its config names no limit.

    A table of positions with a padding index starts to count behind it.
    """
    limits = [longest_sequence(model)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            first = -1 if module.padding_idx is None else module.padding_idx
            limits.append(module.num_embeddings - first - 1)
    return min((limit for limit in limits if limit is not None), default=None)


def label_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The labels of a classifier's outputs, in order."""
    names: dict[int, str] = model.config.id2label
    return tuple(names[index] for index in range(len(names)))
