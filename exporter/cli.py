"""The ``export-llm`` command."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, get_args

import click

from exporter.cli_options import (
    adapter_options,
    build_options_of,
    engine_options,
    limits_of,
    pruning_of,
    pruning_options,
    quality_options,
    quantization_options,
    recipe_of,
)
from exporter.encoders.command import export_encoder_command, is_encoder
from exporter.inspect_engine import inspect_engine
from exporter.subcommands import CommandWithSubcommands
from serving.encoders.contract import Task
from serving.errors import UserError

_TARGETS = ("onnxruntime", "tensorrt-rtx", "tensorrt")


@click.command(
    "export-llm",
    cls=CommandWithSubcommands,
    subcommands=(inspect_engine,),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("model")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--fp16", "dtype", flag_value="float16", help="Weights and cache in float16.")
@click.option("--bf16", "dtype", flag_value="bfloat16", help="Weights and cache in bfloat16.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(_TARGETS),
    help="Engine to build; repeat for several.  [default: onnxruntime]",
)
@click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    help="What an encoder is for.  [default: what its head is for]",
)
@click.option(
    "--max-length", type=int, help="Most tokens of a sequence.  [default: the model's own]"
)
@click.option(
    "--max-source-length", type=int, help="Most tokens that an encoder reads.  [default: its own]"
)
@engine_options
@quantization_options
@pruning_options
@adapter_options
@quality_options
@click.option("--revision", help="Branch, tag or commit of a model on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@click.option("--bisect", is_flag=True, help="After a failed check, name the first wrong module.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its memory, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the report as JSON.")
@click.version_option(package_name="export-llm")
def main(
    model: str,
    bundle: Path,
    dtype: str | None,
    targets: tuple[str, ...],
    task: Task | None,
    max_length: int | None,
    max_source_length: int | None,
    batch: int,
    prefill_chunk: int | None,
    compute_capability: str | None,
    hardware_compatibility: str | None,
    version_compatible: bool,
    strip_weights: bool,
    tensor_parallel: int,
    stages: int,
    revision: str | None,
    trust_remote_code: bool,
    force: bool,
    bisect: bool,
    dry_run: bool,
    as_json: bool,
    calibration: Path | None,
    max_kl: float | None,
    max_perplexity_increase: float | None,
    prune: float | None,
    prune_2_4: bool,
    prune_heads: float | None,
    prune_channels: float | None,
    prune_layers: int,
    lora: bool,
    lora_modules: tuple[str, ...],
    **quantization: Any,
) -> None:
    """Export MODEL, a checkpoint's directory or hub id, to the deployable directory BUNDLE.

    The engine is checked against transformers before BUNDLE comes into being; a difference is an
    error.
    """
    _quiet_libraries()
    try:
        if not dry_run:  # said at once, before torch is imported
            from engines.packing import check_free

            check_free(bundle, force=force)
        common: dict[str, Any] = {
            "dtype": dtype or "float32",
            "targets": tuple(dict.fromkeys(targets)) or ("onnxruntime",),
            "build_options": build_options_of(
                compute_capability=compute_capability,
                hardware_compatibility=hardware_compatibility,
                version_compatible=version_compatible,
            ),
            "recipe": recipe_of(**quantization),
        }
        if is_encoder(model, task, revision):
            export_encoder_command(**common, dry_run=dry_run, as_json=as_json)
            if not dry_run:
                _say_done(bundle, as_json=as_json)
            return
        from exporter.export import Request, export, plan_export
        from exporter.progress import StageDisplay, print_plan

        request = Request(
            **common,
            model=model,
            bundle=bundle,
            max_length=max_length,
            max_source_length=max_source_length,
            batch=batch,
            prefill_chunk=prefill_chunk,
            strip_weights=strip_weights,
            tensor_parallel=tensor_parallel,
            stages=stages,
            revision=revision,
            trust_remote_code=trust_remote_code,
            force=force,
            bisect=bisect,
            pruning=pruning_of(
                prune=prune,
                prune_2_4=prune_2_4,
                prune_heads=prune_heads,
                prune_channels=prune_channels,
                prune_layers=prune_layers,
            ),
            lora=lora or bool(lora_modules),
            lora_modules=lora_modules,
            calibration=calibration,
            limits=limits_of(max_kl=max_kl, max_perplexity_increase=max_perplexity_increase),
        )
        if dry_run:
            print_plan(plan_export(request)[1], as_json=as_json)
            return
        with StageDisplay() as display:
            export(request, display)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"export-llm needs {error.name}: pip install 'export-llm[export]'."
        ) from error
    except UserError as error:
        raise click.ClickException(str(error)) from error
    _say_done(bundle, as_json=as_json)


def _say_done(bundle: Path, *, as_json: bool) -> None:
    """Print what became of an export: one line, or the whole report."""
    text = (bundle / "report.json").read_text(encoding="utf-8")
    status = json.loads(text)["parity"]["status"]
    click.echo(text if as_json else f"{bundle}: {status}; see {bundle / 'report.md'}")


def _quiet_libraries() -> None:
    """Keep the libraries' warnings from the user, who can do nothing about them."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    main()
