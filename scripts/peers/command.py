"""The command line of scripts/bench_peers."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import click

from scripts.peers.agreement import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    agreement,
    disagreement,
    references,
)
from scripts.peers.catalogue import PRECISIONS, chosen_pythons
from scripts.peers.entrants import Run, installed_peers, our_bundles, start_reference
from scripts.peers.measuring import Contestant, Prompts, measure_loading, measure_speed, summary
from scripts.peers.pictures import draw
from scripts.peers.remote import Worker
from scripts.peers.results import lines, report

CONTEXTS, GROWTH_CONTEXTS = "32,512", "32,128,512,1024,2048,4096,8192"


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True)
@click.option("--bundle", "bundles", multiple=True, metavar="[NAME=]PATH", help="One of ours.")
@click.option("--python", "assigned", multiple=True, metavar="PEER=PATH", help="A peer's Python.")
@click.option("--pythons", type=click.File(), help="The same for several peers, as JSON.")
@click.option("--only", multiple=True, metavar="PEER", help="Leave the other peers out.")
@click.option("--converted", type=click.Path(path_type=Path), default=Path("build/peers"))
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/benchmarks"))
@click.option("--contexts", help=f"Prompt lengths (default: {CONTEXTS}).")
@click.option("--growth", is_flag=True, help=f"Contexts {GROWTH_CONTEXTS}; a picture of lines.")
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the prompts.")
def main(
    checkpoint: Path,
    precision: str,
    bundles: tuple[str, ...],
    assigned: tuple[str, ...],
    pythons: IO[str] | None,
    only: tuple[str, ...],
    converted: Path,
    output: Path,
    contexts: str | None,
    growth: bool,
    new_tokens: int,
    repeats: int,
    threads: int,
    seed: int,
) -> None:
    """Measure bundles and every installed peer on one CHECKPOINT, in turns.

    Writes CHECKPOINT-PRECISION[-growth].json and .png to --output. What a peer needs converted is
    kept in --converted.
    """
    lengths = _lengths(contexts or (GROWTH_CONTEXTS if growth else CONTEXTS))
    try:
        in_file = json.load(pythons) if pythons else {}
        interpreters = chosen_pythons(assigned, in_file, Path(sys.executable))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    workspace = converted / checkpoint.name
    for directory in (workspace, output):
        directory.mkdir(parents=True, exist_ok=True)

    capacity = max(max(lengths) + new_tokens, PROMPT_TOKENS + NEW_TOKENS)
    run = Run(checkpoint, workspace, precision, threads, capacity)
    ours = our_bundles(run, bundles)
    peers, absent = installed_peers(run, interpreters, only)
    contestants = [*ours, *peers]
    if not contestants:
        raise click.ClickException("No bundle was given and no peer is installed: give --bundle.")
    prompts = Prompts(seed, run.config["vocab_size"])
    _check_and_measure_loading(run, contestants, interpreters, prompts, repeats)
    bandwidth: list[float] = []
    measure_speed(
        contestants,
        prompts,
        contexts=lengths,
        new_tokens=new_tokens,
        repeats=repeats,
        each_round=lambda: bandwidth.append(_bandwidth(threads)),
    )
    document = {
        "checkpoint": checkpoint.name,
        "precision": precision,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "threads": threads,
        "contexts": lengths,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "growth": growth,
        "read_bandwidth_gigabytes_per_second": summary(bandwidth),
        **report(contestants, [contestant.name for contestant in ours], lengths),
        "absent": absent,
    }
    name = f"{checkpoint.name}-{precision}" + ("-growth" if growth else "")
    (output / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, output / f"{name}.png")
    for line in lines(document):
        click.echo(line)


def _lengths(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise click.UsageError("--contexts takes numbers of tokens, as in 32,512.") from error


def _check_and_measure_loading(
    run: Run,
    contestants: list[Contestant],
    interpreters: dict[str, Path],
    prompts: Prompts,
    repeats: int,
) -> None:
    """Time loading; drop what isn't the checkpoint's model, as float32 logits can tell."""
    expected = []
    if reference := start_reference(run, interpreters):
        with reference:
            expected = references(reference, prompts)

    def check(contestant: Contestant, worker: Worker) -> None:
        if expected:
            contestant.agreement = agreement(worker, expected)
            if run.precision == "float32":
                contestant.failure = disagreement(contestant.agreement)

    measure_loading(contestants, prompts, repeats, check)


def _bandwidth(threads: int) -> float:
    """Measure in a process of its own, whose memory goes back."""
    script = "import sys; from serving.benchmark import read_bandwidth\n"
    script += "print(read_bandwidth(int(sys.argv[1])).median)"
    command = [sys.executable, "-c", script, str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _processor() -> str:
    descriptions = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in descriptions if "model name" in line]
    return names[0] if names else platform.machine()
