"""What an export will do, decided and checked before any weight is read."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from engines.pruning.plan import Pruning
from engines.quantization.recipe import Recipe
from engines.quantization.weight_only import check_group_sizes
from engines.targets import refuse_for_targets, refuse_ranks
from engines.tensorrt.options import BuildOptions, options_for_float8, refuse_options
from exporter.adapters import adapted_modules, refuse_adapters
from exporter.attention import UntraceableError
from exporter.checkpoint import Checkpoint
from exporter.encoder_decoder.tracing import probe_layers as probe_both
from exporter.lengths import longest_sequence, longest_source
from exporter.tracing import CacheLayer, cache_layers, last_cause
from serving.bundle import DType, Target
from serving.errors import UserError

DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
ELEMENT_BYTES: dict[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
_DEFAULTS = BuildOptions()
UNLIMITED = 2048  # for architectures that name no maximum
_SCALES = 0.03  # bytes of scales a quantised weight: float32 for each 128


@dataclass(frozen=True)
class Plan:
    """The export's parameters and what they will cost, in bytes."""

    model: str
    architecture: str
    parameters: int
    dtype: DType
    targets: tuple[Target, ...]
    max_length: int
    batch: int
    prefill_chunk: int | None
    """Most tokens of a prompt in a step of a TensorRT engine; None leaves it to the builder."""
    build_options: BuildOptions
    tensor_parallel: int
    """Ranks that every TensorRT engine is split over."""
    stages: int
    """How many engines run one after the other, each with some of the layers."""
    pruning: Pruning
    recipe: Recipe
    adapted: tuple[str, ...]
    """The last names of the linear layers that take LoRA adapters."""
    packing: str | None
    """What gave the checkpoint's weights few bits, if they have."""
    is_float8: bool
    """Whether these are float8."""
    cache: tuple[CacheLayer | None, ...]
    """What each cache layer holds; None holds nothing of its own."""
    source: tuple[CacheLayer, ...]
    """What each layer of an encoder-decoder holds of its source; () is no encoder-decoder."""
    max_source_length: int | None
    weight_bytes: int
    """Of the weights as they are traced, before anything is quantised."""
    engine_bytes: int
    """About, of the weights in an engine."""
    kv_bytes_per_token: int
    export_memory: int
    disk: int

    @property
    def is_compressed(self) -> bool:
        """Whether the engine differs from the checkpoint by more than rounding."""
        return not (self.pruning.is_empty and self.recipe.is_empty) or self.packing is not None

    @property
    def precision(self) -> str:
        """The types of weights and activations in a few words."""
        numbers = "float8" if self.is_float8 else "integers"
        packed = f"{numbers} of {self.packing}" if self.packing else None
        return ", ".join(filter(None, (self.dtype, packed, self.recipe.describe())))

    @property
    def layers(self) -> tuple[CacheLayer, ...]:
        """The cache layers that hold something, in the graph's order."""
        return tuple(layer for layer in self.cache if layer is not None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def make_plan(
    checkpoint: Checkpoint,
    bundle: Path,
    *,
    dtype: DType,
    targets: tuple[Target, ...],
    max_length: int | None,
    batch: int,
    max_source_length: int | None = None,
    prefill_chunk: int | None = None,
    build_options: BuildOptions = _DEFAULTS,
    tensor_parallel: int = 1,
    stages: int = 1,
    pruning: Pruning,
    recipe: Recipe,
    lora: bool = False,
    lora_modules: Sequence[str] = (),
) -> Plan:
    """Decide lengths and limits and estimate costs.

    Raises UserError for combinations that can't work, an architecture that can't be traced, and too
    little disk space.
    """
    if dtype == "bfloat16" and "onnxruntime" in targets:
        raise UserError(
            "ONNX Runtime has no bfloat16 kernels for the CPU, so the engine couldn't be checked: "
            "use --fp16 or float32, or a TensorRT target."
        )
    refuse_for_targets(recipe, targets)
    if checkpoint.packing and not (pruning.is_empty and recipe.bits is None):
        raise UserError(
            f"{checkpoint.name} is quantised already, by {checkpoint.packing.method}: leave out "
            "what prunes or quantises its weights, or export the checkpoint that it was made from."
        )
    if dtype == "bfloat16" and not (pruning.is_empty and recipe.is_empty):
        raise UserError(
            "ONNX Runtime has no bfloat16 kernels for the CPU, so what a bfloat16 model loses "
            "can't be measured: prune and quantise with --fp16 or in float32."
        )
    model = empty_model(checkpoint)
    if lora:
        refuse_adapters(
            recipe, targets, stages=stages, ranks=tensor_parallel, prunes=not pruning.is_empty
        )
    most_tokens = _limit("--max-length", longest_sequence(model), max_length)
    source_tokens = _source_limit(checkpoint, model, max_source_length)
    refuse_options(
        build_options, prefill_chunk, targets=targets, dtype=dtype, max_length=most_tokens
    )
    is_float8 = checkpoint.packing is not None and checkpoint.packing.is_float8
    if is_float8:
        build_options = options_for_float8(build_options, targets)
    cache, source = probe_layers(checkpoint, model)
    pruning.check_layers(len(cache))
    if recipe.group_size is not None and not pruning.changes_widths:
        inputs = _linear_inputs(model)
        check_group_sizes(inputs, dict.fromkeys(inputs, recipe.scheme(4)))
    kv_heads = [layer.kv_heads for layer in cache if layer]
    refuse_ranks(tensor_parallel, targets, kv_heads)
    _refuse_stages(stages, len(kv_heads) - pruning.layers, tensor_parallel)
    width = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in cache if layer)
    parameters = {id(p): p for p in model.parameters()}.values()
    stored = sum(p.numel() for p in parameters)
    matrices = sum(p.numel() for p in parameters if p.dim() == 2)
    weight_bytes = stored * ELEMENT_BYTES[dtype]
    engine_bytes = weight_bytes
    if recipe.bits is not None:
        engine_bytes += int(matrices * (recipe.bits / 8 + _SCALES - ELEMENT_BYTES[dtype]))
    repeated = engine_bytes * _tied(model) // stored if stages > 1 else 0
    repeated += (tensor_parallel - 1) * _vocabulary(model) * ELEMENT_BYTES[dtype]
    watched = stored * 4 if dtype == "float16" else 0
    plan = Plan(
        model=checkpoint.name,
        architecture=checkpoint.config.model_type,
        parameters=stored,
        dtype=dtype,
        targets=targets,
        max_length=most_tokens,
        batch=batch,
        prefill_chunk=prefill_chunk,
        build_options=replace(build_options, sparse_weights=pruning.two_of_four),
        tensor_parallel=tensor_parallel,
        stages=stages,
        pruning=pruning,
        recipe=recipe,
        adapted=adapted_modules(model, lora_modules) if lora else (),
        packing=checkpoint.packing.method if checkpoint.packing else None,
        is_float8=is_float8,
        cache=cache,
        source=source,
        max_source_length=source_tokens,
        weight_bytes=weight_bytes,
        engine_bytes=engine_bytes + repeated,
        kv_bytes_per_token=width * (1 if recipe.kv_cache else ELEMENT_BYTES[dtype]),
        export_memory=max(weight_bytes, stored * 4) * 5 // 4 + 400_000_000,
        disk=_disk(weight_bytes, engine_bytes, len(targets), watched) + repeated * len(targets),
    )
    check_disk(bundle, plan.disk)
    return plan


def _linear_inputs(model: PreTrainedModel) -> dict[str, int]:
    """The input channels of each linear layer's weight, by its name."""
    return {
        f"{name}.weight": module.nx if isinstance(module, Conv1D) else module.in_features
        for name, module in model.named_modules()
        if isinstance(module, Conv1D | torch.nn.Linear)
    }


def _refuse_stages(stages: int, layers: int, ranks: int) -> None:
    if stages < 1:
        raise UserError(f"--stages {stages} isn't possible: give at least 1.")
    if stages > max(layers, 1):
        raise UserError(
            f"--stages {stages} isn't possible: each stage needs a layer with keys and values of "
            f"its own, and there are {layers}."
        )
    if stages > 1 and ranks > 1:
        raise UserError("--stages and --tensor-parallel exclude each other: choose one.")


def empty_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model without memory for its weights; raises UserError if it can't be built."""
    try:
        with FakeTensorMode(), no_init_weights():
            model: PreTrainedModel = checkpoint.auto_class.from_config(
                checkpoint.config, trust_remote_code=checkpoint.trust_remote_code
            ).eval()
            model.tie_weights()  # which is part of initialising them
            return model
    except Exception as error:  # each architecture checks its config in its own way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"transformers can't build {checkpoint.name} from its config.json ({reason[0]}): "
            "get it again, or install a transformers that fits it."
        ) from error


def probe_layers(
    checkpoint: Checkpoint, model: PreTrainedModel
) -> tuple[tuple[CacheLayer | None, ...], tuple[CacheLayer, ...]]:
    """Shapes of the cache of an empty model, and of what an encoder-decoder keeps of its source.

    Raises UserError if it isn't keys and values alone.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            if checkpoint.is_encoder_decoder:
                layers = probe_both(model)
                return layers.own, layers.source
            return tuple(cache_layers(model)), ()
    except UntraceableError as error:
        if getattr(checkpoint.config, "is_decoder", True) is False and not (
            checkpoint.is_encoder_decoder
        ):
            raise refusal(checkpoint, "it is an encoder, and only decoders generate") from error
        raise refusal(checkpoint, error) from error
    except Exception as error:  # the model's own code, which fails in any way it has
        raise refusal(checkpoint, f"its code can't be traced ({last_cause(error)})") from error


def refusal(checkpoint: Checkpoint, error: Exception | str) -> UserError:
    """The one sentence for an architecture that can't be exported."""
    return UserError(
        f"{checkpoint.name} has the architecture {checkpoint.config.model_type!r}, which can't be "
        f"exported: {error}."
    )


def megabytes(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e6:,.0f} MB"


def _disk(weight_bytes: int, engine_bytes: int, targets: int, watched: int) -> int:
    """What an export writes: the engines and, while others are made, the graph as it was traced.

    The float32 copy that is ``watched`` for float16's range is gone before the engines are written.
    """
    traced = weight_bytes if engine_bytes != weight_bytes else 0
    return max(engine_bytes * targets, watched) + traced + 20_000_000


def _vocabulary(model: PreTrainedModel) -> int:
    """Numbers of the embedding and the LM head, which every rank has whole."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(module.weight): module.weight for module in modules if module is not None}
    return sum(weight.numel() for weight in weights.values())


def _tied(model: PreTrainedModel) -> int:
    """Elements of an embedding that is the head too: the first stage and the last both have it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return embedding.weight.numel() if head is not None and head.weight is embedding.weight else 0


def _source_limit(checkpoint: Checkpoint, model: PreTrainedModel, wanted: int | None) -> int | None:
    """Most tokens of a source; None if there are none."""
    if checkpoint.is_encoder_decoder:
        return _limit("--max-source-length", longest_source(model), wanted)
    if wanted is not None:
        raise UserError(
            f"--max-source-length is about encoders, and {checkpoint.name} has none: leave it out."
        )
    return None


def _limit(option: str, longest: int | None, wanted: int | None) -> int:
    longest = longest or UNLIMITED
    if wanted is None:
        return longest
    if wanted < 2 or wanted > longest:
        raise UserError(
            f"{option} {wanted} isn't possible: this model takes from 2 to {longest} tokens."
        )
    return wanted


def check_disk(bundle: Path, needed: int) -> None:
    """Raise UserError where the disk of a bundle has too little room."""
    existing = next(path for path in (bundle, *bundle.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{bundle} needs {megabytes(needed)} and {existing} has {megabytes(free)} free: "
            "make room or choose another disk."
        )
