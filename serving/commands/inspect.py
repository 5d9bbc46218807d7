"""``serve-llm inspect``: what is in a bundle."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import bundle_argument, json_option, key_file_option, verify_option

if TYPE_CHECKING:
    from serving.bundle import LayerInfo, Manifest


@click.command()
@bundle_argument
@verify_option
@key_file_option
@json_option
def inspect(bundle: Path, verify: bool, key_file: Path | None, as_json: bool) -> None:
    """Show what is in BUNDLE: model, engines, limits, parity and files."""
    from serving.bundle import open_bundle

    manifest = open_bundle(bundle, verify, key_file).manifest
    if as_json:
        per_token = {"kv_bytes_per_token": manifest.graph.kv_bytes_per_token}
        click.echo(json.dumps(manifest.model_dump(mode="json") | per_token))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False)
    for name, value in _rows(manifest):
        table.add_row(name, value)
    Console().print(table)


def _rows(manifest: "Manifest") -> Iterator[tuple[str, str]]:
    model, graph = manifest.model, manifest.graph
    yield "model", f"{model.name} ({model.architecture})"
    yield "weights", f"{model.parameters:,} parameters, {_size(model.weight_bytes)}"
    yield "precision", manifest.model.precision or graph.dtype
    yield "layers", _layers(graph.layers)
    yield "vocabulary", f"{graph.vocab_size:,}"
    yield "maximum length", f"{graph.max_length:,} tokens"
    yield "embeddings", f"{graph.hidden_size:,} numbers" if graph.hidden_size else "none"
    yield "KV cache", f"{_size(graph.kv_bytes_per_token)} a token"
    if graph.source is not None:
        yield "sources", f"up to {graph.source.max_length:,} tokens"
        yield "source buffers", f"{_size(graph.source_bytes_per_token)} a token"
    if graph.lora:
        modules = [module.name.rpartition(".")[2] for t in graph.lora for module in t.modules]
        yield "LoRA adapters", f"{len(modules)} layers: {', '.join(dict.fromkeys(modules))}"
    for engine in manifest.engines:
        limits = [
            *([f"rank {engine.rank} of {engine.ranks}"] if engine.ranks > 1 else []),
            f"batch up to {engine.max_batch}" if engine.max_batch else "any batch",
            f"{engine.max_sequence:,} tokens" if engine.max_sequence else "any capacity",
            *([f"prefill chunk {engine.prefill_chunk}"] if engine.prefill_chunk else []),
            *(f"compute capability {capability}" for capability in engine.compute_capabilities),
        ]
        if engine.stripped_from is not None:
            limits.append(f"without the weights of its {_size(engine.stripped_from.size)}")
        yield f"engine {engine.target}", f"{engine.runtime_version}, {', '.join(limits)}"
        for number, stage in enumerate(engine.stages):
            yield f"stage {number}", f"{stage.layer_range}, {_size(stage.weight_bytes)} of weights"
    tokens = manifest.tokens
    yield "special tokens", f"bos {tokens.bos}, eos {list(tokens.eos)}, pad {tokens.pad}"
    yield from _parity(manifest.parity)
    for measured in (manifest.quality or {}).get("engines", ()):
        yield "quality", _pairs(measured.get("overall", measured))
    yield "created", manifest.created
    yield (
        "built with",
        ", ".join(f"{name} {version}" for name, version in manifest.built_with.items()),
    )
    for file, info in sorted(manifest.files.items()):
        yield file, f"{_size(info.size)}, sha256 {info.sha256[:12]}"


def _layers(layers: "tuple[LayerInfo, ...]") -> str:
    """Describe the layers, equal ones together."""
    counts = Counter(layers)
    return "; ".join(
        f"{count} with {layer.kv_heads} KV heads of {layer.key_dim}"
        + (f", window {layer.window}" if layer.window else "")
        for layer, count in counts.items()
    )


def _parity(parity: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Show a bundle's parity figures: what holds for all, then one row a comparison."""
    apart = ("comparisons", "embeddings")
    yield "parity", _pairs({name: value for name, value in parity.items() if name not in apart})
    for comparison in parity.get("comparisons", ()):
        figures = dict(comparison)
        yield f"parity, {figures.pop('name')}", _pairs(figures)
    if embeddings := parity.get("embeddings"):
        yield "parity, embeddings", _pairs(embeddings)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in values.items()
        if value is not None
    )


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
