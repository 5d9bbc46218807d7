"""Options of ``export-llm``: what makes a model smaller, what an engine is, what they ask for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import Command, add_options
from serving.errors import UserError

_COMPATIBILITIES = ("ampere-plus", "same-compute-capability", "none")

if TYPE_CHECKING:
    from engines.pruning.plan import Pruning
    from engines.quality import QualityLimits
    from engines.quantization.recipe import Recipe
    from engines.tensorrt.options import BuildOptions

_METHODS = ("round-to-nearest", "awq", "gptq")


def engine_options(command: Command) -> Command:
    """Add the options of TensorRT engines."""
    options = (
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Most rows of a decode step of a TensorRT engine.",
        ),
        click.option(
            "--prefill-chunk",
            type=int,
            help="Most tokens of a prompt in a step of a TensorRT engine.  [default: 512]",
        ),
        click.option(
            "--compute-capability",
            help="GPUs that a TensorRT-RTX engine is for, such as 8.6,8.9.  [default: from 8.0 on]",
        ),
        click.option(
            "--hardware-compatibility",
            type=click.Choice(_COMPATIBILITIES),
            help="GPUs that a TensorRT engine is for.  [default: ampere-plus]",
        ),
        click.option(
            "--version-compatible",
            is_flag=True,
            help="Let newer TensorRT versions run a TensorRT engine.",
        ),
        click.option(
            "--strip-weights",
            is_flag=True,
            help="Leave out of a TensorRT engine the weights that serve-llm restore puts back.",
        ),
        click.option(
            "--tensor-parallel",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="GPUs that each compute a part of every layer of a TensorRT engine.",
        ),
        click.option(
            "--stages",
            type=int,
            default=1,
            show_default=True,
            help="Engines that share the layers and run one after the other.",
        ),
    )
    return add_options(command, options)


def quantization_options(command: Command) -> Command:
    """Add the options that say what becomes integers."""
    options = (
        click.option("--int8", is_flag=True, help="Weights in 8 bits."),
        click.option("--int4", is_flag=True, help="Weights in 4 bits."),
        click.option("--w8a8", is_flag=True, help="Weights and activations in 8 bits."),
        click.option("--bits", type=float, help="Bits a weight on average, from 4 to 8."),
        click.option(
            "--method",
            type=click.Choice(_METHODS),
            help="How weights are rounded.  [default: gptq for 4 bits, else round-to-nearest]",
        ),
        click.option(
            "--group-size",
            type=int,
            help="Inputs that share a scale.  [default: 128 for 4 bits, else a whole row]",
        ),
        click.option("--asymmetric", is_flag=True, help="Give each scale a zero point."),
        click.option("--int8-kv", is_flag=True, help="Keys and values in 8 bits."),
    )
    return add_options(command, options)


def pruning_options(command: Command) -> Command:
    """Add the options that say what is removed."""
    options = (
        click.option("--prune", type=float, help="Fraction of the weights to set to zero."),
        click.option("--prune-2-4", is_flag=True, help="Set two of every four weights to zero."),
        click.option("--prune-heads", type=float, help="Fraction of attention heads to remove."),
        click.option("--prune-channels", type=float, help="Fraction of MLP channels to remove."),
        click.option("--prune-layers", type=int, default=0, help="Layers to remove."),
    )
    return add_options(command, options)


def adapter_options(command: Command) -> Command:
    """Add the options that say which layers take LoRA adapters."""
    options = (
        click.option("--lora", is_flag=True, help="Let every request choose a LoRA adapter."),
        click.option(
            "--lora-modules",
            callback=lambda _, __, names: tuple(filter(None, (names or "").split(","))),
            help="Linear layers that take adapters, such as q_proj,v_proj.  [default: all]",
        ),
    )
    return add_options(command, options)


def quality_options(command: Command) -> Command:
    """Add the options of the quality gate."""
    options = (
        click.option(
            "--calibration",
            type=click.Path(path_type=Path),
            help="Text, or a directory of it, to calibrate with and measure quality on.",
        ),
        click.option("--max-kl", type=float, help="Most KL divergence a token, in nats."),
        click.option(
            "--max-perplexity-increase",
            type=float,
            help="Most increase of perplexity, as a fraction: 0.01 is 1%.",
        ),
    )
    return add_options(command, options)


def build_options_of(
    *, compute_capability: str | None, hardware_compatibility: Any, version_compatible: bool
) -> "BuildOptions":
    """The build that these options ask for; raises UserError for an unknown compute capability."""
    from engines.tensorrt.options import BuildOptions, parse_compute_capabilities

    given = compute_capability is not None
    return BuildOptions(
        parse_compute_capabilities(compute_capability or "") if given else (),
        hardware_compatibility,
        version_compatible,
    )


def recipe_of(
    *,
    int8: bool,
    int4: bool,
    w8a8: bool,
    bits: float | None,
    method: Any,
    group_size: int | None,
    asymmetric: bool,
    int8_kv: bool,
) -> "Recipe":
    """The recipe that these options ask for; raises UserError for what can't be meant."""
    from engines.quantization.recipe import Recipe

    given = [
        name
        for name, is_given in (("--int8", int8), ("--int4", int4), ("--w8a8", w8a8))
        if is_given
    ]
    given += ["--bits"] if bits is not None else []
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: choose one.")
    return Recipe(
        bits=bits if bits is not None else 4 if int4 else 8 if int8 or w8a8 else None,
        activations=w8a8,
        kv_cache=int8_kv,
        method=method,
        group_size=group_size,
        symmetric=not asymmetric,
    )


def pruning_of(
    *,
    prune: float | None,
    prune_2_4: bool,
    prune_heads: float | None,
    prune_channels: float | None,
    prune_layers: int,
) -> "Pruning":
    """The pruning that these options ask for; raises UserError for what can't be meant."""
    from engines.pruning.plan import Pruning

    return Pruning(
        weights=prune,
        two_of_four=prune_2_4,
        heads=prune_heads,
        channels=prune_channels,
        layers=prune_layers,
    )


def limits_of(*, max_kl: float | None, max_perplexity_increase: float | None) -> "QualityLimits":
    """The limits that these options set; raises UserError for those that nothing could keep."""
    from engines.quality import QualityLimits

    for name, limit in (
        ("--max-kl", max_kl),
        ("--max-perplexity-increase", max_perplexity_increase),
    ):
        if limit is not None and not limit >= 0:
            raise UserError(f"{name} {limit:g} isn't possible: give a number from 0.")
    return QualityLimits(max_kl=max_kl, max_perplexity_increase=max_perplexity_increase)
