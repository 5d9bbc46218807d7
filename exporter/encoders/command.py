"""What ``export-llm`` does with an encoder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import refuse_given
from serving.encoders.contract import Task

if TYPE_CHECKING:
    from engines.quantization.recipe import Recipe
    from engines.tensorrt.options import BuildOptions

# Options that say something about generating text, or that encoders don't have yet.
_DECODER_ONLY = {
    "prefill_chunk",
    "strip_weights",
    "tensor_parallel",
    "stages",
    "prune",
    "prune_2_4",
    "prune_heads",
    "prune_channels",
    "prune_layers",
    "lora",
    "lora_modules",
    "bisect",
    "max_kl",
    "max_perplexity_increase",
}


def is_encoder(model: str, task: Task | None, revision: str | None) -> bool:
    """Whether MODEL is to be exported as an encoder: ``--task`` or its own head says so."""
    from exporter.checkpoint import locate
    from exporter.encoders.tasks import find_task

    return task is not None or find_task(locate(model, revision)) is not None


def export_encoder_command(
    *,
    build_options: "BuildOptions",
    recipe: "Recipe",
    dtype: Any,
    targets: Any,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Export the encoder that the running command's parameters name; raises UserError."""
    from exporter.encoders.export import EncoderRequest, export_encoder, plan_encoder
    from exporter.progress import StageDisplay, print_rows

    refuse_given(_DECODER_ONLY, "is for models that generate text: leave it out for an encoder.")
    names = ("task", "max_length", "batch", "calibration", "revision", "trust_remote_code", "force")
    given = click.get_current_context().params
    request = EncoderRequest(
        model=given["model"],
        bundle=Path(given["bundle"]),
        dtype=dtype,
        targets=targets,
        build_options=build_options,
        recipe=recipe,
        **{name: given[name] for name in names},
    )
    if dry_run:
        plan = plan_encoder(request)[1]
        print_rows(f"Plan for {plan.model}", dict(plan.rows()), plan.as_dict(), as_json=as_json)
        return
    with StageDisplay() as display:
        export_encoder(request, display)
