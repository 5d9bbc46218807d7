"""``export-llm inspect-engine``: the layers, precisions and memory of a bundle's engines."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import bundle_argument, json_option
from serving.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from serving.bundle import Bundle, EngineInfo

_FUSED = "[ONNX Layer: "


@click.command(
    "inspect-engine",
    short_help="Show layers and memory of TensorRT engines.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@bundle_argument
@json_option
def inspect_engine(bundle: Path, as_json: bool) -> None:
    """Show the layers, precisions and memory of the TensorRT engines in BUNDLE.

    What was known when an engine was built is shown everywhere; how TensorRT fused its layers only
    with a GPU that it runs on.
    """
    from serving.bundle import open_bundle

    try:
        opened = open_bundle(bundle, verify=False)
        engines = [info for info in opened.manifest.engines if info.target != "onnxruntime"]
        if not engines:
            raise UserError(
                f"{str(bundle)!r} has no TensorRT engine: serve-llm inspect shows what it has."
            )
        described = [describe(opened, info) for info in engines]
    except UserError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(described))
        return

    from rich.console import Console

    for engine in described:
        _print_engine(Console(), engine)


def describe(bundle: "Bundle", info: "EngineInfo") -> dict[str, Any]:
    """What the build kept of an engine; ``loaded`` is what it says itself, or why it can't.

    Raises UserError for an engine without a summary.
    """
    from engines.tensorrt.inspection import inspect_loaded
    from engines.tensorrt.summary import summary_file

    file = bundle.file(summary_file(info.file))
    if file is None:
        raise UserError(
            f"The engine {info.file!r} has no summary, it was built by an older export-llm: "
            "export the model again."
        )
    summary: dict[str, Any] = json.loads(file.read_bytes())
    try:
        loaded = inspect_loaded(bundle.location(info.file), info)
        summary["loaded"] = {
            "layers": list(loaded.layers),
            "activation_bytes": list(loaded.activation_bytes),
        }
    except UserError as error:
        summary["loaded"] = {"error": str(error)}
    return summary


def _print_engine(console: "Console", engine: dict[str, Any]) -> None:
    from rich.table import Table

    loaded = engine["loaded"]
    console.print(f"{engine['target']} {engine['builder_version']}, for {_gpus(engine)}")
    console.print(f"weights {_megabytes(engine['weight_bytes'])}")
    profiles = Table("profile", "rows", "tokens", "KV buffers", "activations", title="Memory")
    measured = loaded.get("activation_bytes") or [p["activation_bytes"] for p in engine["profiles"]]
    for profile, activations in zip(engine["profiles"], measured, strict=True):
        profiles.add_row(
            profile["name"],
            str(profile["rows"]),
            str(profile["tokens"]),
            _megabytes(profile["kv_bytes"]),
            "unknown" if activations is None else _megabytes(activations),
        )
    console.print(profiles)
    layers = Table("layer", "precision", "count", title="Layers of the network")
    for layer in engine["layers"]:
        layers.add_row(layer["type"], layer["precision"], str(layer["count"]))
    console.print(layers)
    if "error" in loaded:
        console.print(loaded["error"], markup=False)
        return
    fused = Table("layer", "type", "precision", "nodes", title="Layers of the engine")
    for layer in loaded["layers"]:
        results = layer.get("Outputs") or [{}]
        fused.add_row(
            layer["Name"],
            layer.get("LayerType", ""),
            results[0].get("Format/Datatype", ""),
            str(layer.get("Metadata", "").count(_FUSED) or ""),
        )
    console.print(fused)


def _gpus(engine: dict[str, Any]) -> str:
    capabilities = engine["compute_capabilities"]
    if capabilities:
        return f"compute capability {', '.join(capabilities)}"
    return f"GPUs by hardware compatibility {engine['hardware_compatibility']}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
