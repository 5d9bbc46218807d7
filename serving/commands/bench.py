"""``serve-llm bench``: what a bundle costs to load and to run here."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import (
    bundle_argument,
    json_option,
    key_file_option,
    target_option,
    verify_option,
)
from serving.commands.progress import progress_bar
from serving.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from serving.bundle import Bundle, EngineInfo, Target


def _contexts(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        contexts = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        contexts = ()
    if not contexts or min(contexts) < 1:
        raise click.BadParameter("give numbers of tokens, as in 32,512.", param=parameter)
    return contexts


@click.command()
@bundle_argument
@click.option(
    "--contexts",
    default="32,512",
    callback=_contexts,
    help="Prompt lengths to measure behind, in tokens (default: 32,512).",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(2),
    default=64,
    help="Tokens to generate behind each prompt (default: 64).",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    help="Measurements of everything (default: 5).",
)
@target_option
@click.option("--threads", type=int, help="Threads (default: the physical cores).")
@verify_option
@key_file_option
@json_option
def bench(
    bundle: Path,
    contexts: tuple[int, ...],
    new_tokens: int,
    repeats: int,
    target: "Target | None",
    threads: int | None,
    verify: bool,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Measure the speed, the load time and the memory of BUNDLE on this machine."""
    from serving.benchmark import measure_loading, measure_speed, peak_memory, read_bandwidth
    from serving.bundle import open_bundle
    from serving.loading import choose_engine, load
    from serving.onnxruntime import physical_cores

    opened = open_bundle(bundle, verify, key_file)
    engine = choose_engine(opened, target)
    capacity = _capacity(opened, engine, contexts, new_tokens)
    threads = physical_cores() if threads is None else threads
    options: dict[str, Any] = {"target": target, "capacity": capacity, "threads": threads}
    options["key_file"] = None if key_file is None else str(key_file)
    with load(bundle, slots=1, **options, verify=False) as model:
        with _progress(len(contexts) * (repeats + 1)) as advance:
            speeds = measure_speed(
                model, contexts, new_tokens=new_tokens, repeats=repeats, progress=advance
            )
        peak = peak_memory()
    loading = measure_loading(bundle, **options, repeats=repeats)
    # What a GPU reads is not read from this memory.
    bandwidth = read_bandwidth(threads) if engine.target == "onnxruntime" else None
    document = {
        "bundle": str(bundle),
        "model": opened.manifest.model.name,
        "target": engine.target,
        "threads": threads,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "contexts": [asdict(speed) for speed in speeds],
        "loading": asdict(loading),
        "peak_memory": peak,
        "read_bandwidth_gigabytes_per_second": bandwidth and asdict(bandwidth),
    }
    if as_json:
        click.echo(json.dumps(document))
        return
    from rich.console import Console

    console = Console()
    console.print(_speed_table(document))
    console.print(_cost_table(document))


def _capacity(
    bundle: "Bundle", engine: "EngineInfo", contexts: tuple[int, ...], new_tokens: int
) -> int:
    needed = max(contexts) + new_tokens
    most = engine.max_sequence or bundle.manifest.graph.max_length
    if needed > most:
        raise UserError(
            f"A context of {max(contexts)} and {new_tokens} new tokens need {needed} tokens, but "
            f"this model takes {most}: ask for shorter --contexts or fewer --new-tokens."
        )
    return engine.max_sequence or needed


@contextmanager
def _progress(steps: int) -> "Iterator[Callable[[], None]]":
    """Show a bar on a terminal's standard error, and nothing elsewhere."""
    with progress_bar() as progress:
        task = progress.add_task("measuring", total=steps)
        yield lambda: progress.advance(task)


def _speed_table(document: dict[str, Any]) -> "Table":
    from rich.table import Table

    bandwidth = document["read_bandwidth_gigabytes_per_second"]
    where = f"{document['threads']} threads" if bandwidth else document["target"]
    title = f"{document['model']}, {where}, median (from - to)"
    table = Table("context", "first token", "prefill", "decode", "read", title=title)
    for speed in document["contexts"]:
        read = speed["decode_gigabytes_per_second"]
        share = f", {read['median'] / bandwidth['median']:.0%}" if bandwidth else ""
        table.add_row(
            f"{speed['context']:,}",
            _range(speed["time_to_first_token"], 1e3, "ms"),
            _range(speed["prefill_tokens_per_second"], 1, "tokens/s"),
            _range(speed["decode_tokens_per_second"], 1, "tokens/s"),
            _range(read, 1, "GB/s") + share,
        )
    return table


def _cost_table(document: dict[str, Any]) -> "Table":
    from rich.table import Table

    loading = document["loading"]
    table = Table("", "", show_header=False)
    table.add_row("load", _range(loading["load_seconds"], 1e3, "ms"))
    table.add_row("load and first token", _range(loading["first_token_seconds"], 1e3, "ms"))
    table.add_row("peak memory after that", _range(loading["peak_memory"], 1e-6, "MB"))
    table.add_row("peak memory of all of this", f"{document['peak_memory'] / 1e6:,.1f} MB")
    if bandwidth := document["read_bandwidth_gigabytes_per_second"]:
        table.add_row("memory's read bandwidth", _range(bandwidth, 1, "GB/s"))
    return table


def _range(statistic: dict[str, float], scale: float, unit: str) -> str:
    low, middle, high = (statistic[name] * scale for name in ("min", "median", "max"))
    return f"{middle:,.1f} {unit} ({low:,.1f} - {high:,.1f})"
