#!/usr/bin/env python3
"""Benchmarks of the way from checkpoint to tokens: what docs/benchmarks.md reports.

    scripts/benchmark.py checkpoint qwen2.5-0.5b DIRECTORY   a random checkpoint of a real shape
    scripts/benchmark.py export CHECKPOINT                   beside onnxruntime-genai's builder
    scripts/benchmark.py capacity BUNDLE                     decode against KV capacity
    scripts/benchmark.py memory BUNDLE                       peak memory of serving

Figures are medians of interleaved runs; a comparison is the median of the pairs' ratios.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

PROMPT = list(range(100, 132))  # 32 tokens


@click.group()
def main() -> None:
    """Measure; see the file's head."""


@main.command()
@click.argument("shape", type=click.Choice(["gpt2-124m", "qwen2.5-0.5b"]))
@click.argument("directory", type=click.Path(path_type=Path))
def checkpoint(shape: str, directory: Path) -> None:
    """Write a random float32 checkpoint of a real SHAPE."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes: dict[str, tuple[str, dict[str, Any]]] = {
        "gpt2-124m": ("gpt2", {}),
        "qwen2.5-0.5b": (
            "qwen2",
            {
                "hidden_size": 896,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "intermediate_size": 4864,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
                "max_position_embeddings": 32768,
            },
        ),
    }
    model_type, settings = shapes[shape]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)


@main.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=3, show_default=True)
def export(source: Path, runs: int) -> None:
    """Time export-llm and, if it is installed, onnxruntime-genai's builder on one checkpoint."""
    peers: dict[str, list[str]] = {
        "export-llm": [_command("export-llm"), str(source), "{out}"],
        "onnxruntime-genai": [
            *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
            *("-m", str(source), "-i", str(source), "-o", "{out}", "-p", "fp32", "-e", "cpu"),
        ],
    }
    if subprocess.run([sys.executable, "-c", "import onnxruntime_genai"], check=False).returncode:
        del peers["onnxruntime-genai"]
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    peaks: dict[str, int] = {}
    stages: list[dict[str, float]] = []
    for _ in range(runs):
        for peer, command in peers.items():
            with tempfile.TemporaryDirectory() as directory:
                out = Path(directory) / "out"
                begin = time.perf_counter()
                peaks[peer] = _peak([part.replace("{out}", str(out)) for part in command])
                seconds[peer].append(time.perf_counter() - begin)
                if (report := out / "report.json").is_file():
                    stages.append(json.loads(report.read_text())["seconds"])
                shutil.rmtree(out)
    for peer, values in seconds.items():
        click.echo(f"{peer}: {statistics.median(values):.1f} s, peak {peaks[peer] / 1e6:,.0f} MB")
    medians = {name: statistics.median(run[name] for run in stages) for name in stages[0]}
    click.echo("stages of export-llm: " + ", ".join(f"{n} {s:.1f} s" for n, s in medians.items()))


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--capacities", default="1024,8192", show_default=True)
@click.option("--rounds", default=7, show_default=True)
def capacity(bundle: Path, capacities: str, rounds: int) -> None:
    """Time decoding behind 32 tokens with different KV capacities, interleaved."""
    import serving

    sizes = [int(size) for size in capacities.split(",")]
    models = {size: serving.load(bundle, capacity=size, slots=1) for size in sizes}
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for model in models.values():
        _decode_rate(model, 4)
    for _ in range(rounds):
        for size, model in models.items():
            rates[size].append(_decode_rate(model, 32))
    for size, values in rates.items():
        click.echo(f"capacity {size}: {statistics.median(values):.2f} tokens/s")
    pairs = zip(rates[sizes[0]], rates[sizes[-1]], strict=True)
    ratio = statistics.median(last / first for first, last in pairs)
    click.echo(f"{sizes[-1]} against {sizes[0]}: {ratio:.3f}")


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--capacity", "size", default=4096, show_default=True)
def memory(bundle: Path, size: int) -> None:
    """Compare the peak memory of generating with the weights and the KV cache."""
    import serving

    with serving.load(bundle, capacity=size, slots=1) as model:
        _decode_rate(model, 64)
        needed = model.engine.weight_bytes + model.engine.cache.nbytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = f"peak {peak / 1e6:,.0f} MB, weights and KV cache {needed / 1e6:,.0f} MB"
    click.echo(f"{text}: {peak / needed:.3f}")


def _decode_rate(model: Any, tokens: int) -> float:
    """Tokens a second after the first one."""
    stream = model.generate(PROMPT, max_new_tokens=tokens + 1, ignore_eos=True, stream=True)
    next(stream)
    begin = time.perf_counter()
    count = sum(1 for _ in stream)
    return count / (time.perf_counter() - begin)


def _peak(command: list[str]) -> int:
    """Run a command; returns its peak resident memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"{command[0]} failed: run it by hand to see why.")
    return usage.ru_maxrss * 1024


def _command(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


if __name__ == "__main__":
    main()
