"""The command line of scripts/bench_serving."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from scripts.load.timing import Timeline, beside, figures
from scripts.peers.measuring import PAUSE_SECONDS, Prompts
from scripts.peers.remote import ROOT, environment

# What the contestants print.
LOG = ROOT / "build" / "bench_serving.log"

# As serve-llm http has them.
PREFIX_ROWS = 8

# Of a prompt that begins like another one, so many are its own.
OWN_TOKENS = 16


@dataclass
class Contestant:
    """What is put under load, and what came of it, by the number of streams."""

    name: str
    module: str
    python: Path
    settings: dict[str, Any]
    rounds: dict[int, list[list[Timeline]]] = field(default_factory=dict)
    version: str = ""
    process: "subprocess.Popen[str] | None" = None

    def start(self, stack: ExitStack, log: Path) -> None:
        """Load it; raises ClickException if it can't be."""
        command = [str(self.python), "-m", "scripts.load.worker", self.module]
        self.process = subprocess.Popen(
            [*command, json.dumps(self.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stack.enter_context(log.open("a")),
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        stack.callback(self._stop)
        self.version = self._read(log)["version"]

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """Let it serve a load."""
        assert self.process is not None
        assert self.process.stdin is not None
        load = {"streams": streams, "prompts": prompts, "new_tokens": new_tokens}
        print(json.dumps(load), file=self.process.stdin, flush=True)
        return [Timeline(**timeline) for timeline in self._read(None)["timelines"]]

    def _read(self, log: Path | None) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended: see {log or 'its log'}.")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _stop(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--llama-server", type=click.Path(exists=True, path_type=Path), help="The program.")
@click.option("--gguf", type=click.Path(exists=True, path_type=Path), help="Its model.")
@click.option("--triton", is_flag=True, help="Our model in the Triton server of .venv-triton.")
@click.option("--openvino-python", type=click.Path(exists=True, path_type=Path))
@click.option("--openvino-model", type=click.Path(exists=True, path_type=Path))
@click.option("--streams", default="1,8", show_default=True, help="Numbers of clients.")
@click.option("--requests", type=int, default=2, show_default=True, help="Of each client.")
@click.option("--prompt-tokens", type=int, default=128, show_default=True)
@click.option("--new-tokens", type=int, default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--capacity", type=int, default=1024, show_default=True)
@click.option("--shared-prefix", type=int, default=512, show_default=True, help="Tokens.")
@click.option("--output", type=click.Path(path_type=Path), help="A JSON file.")
def main(
    bundle: Path,
    llama_server: Path | None,
    gguf: Path | None,
    triton: bool,
    openvino_python: Path | None,
    openvino_model: Path | None,
    streams: str,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    threads: int,
    capacity: int,
    shared_prefix: int,
    output: Path | None,
) -> None:
    """Put a BUNDLE's engine and server under load, in turns with the peers that are named.

    Then ask ours twice for texts that begin with the same --shared-prefix tokens. An encoder's
    server gets single texts from as many clients, and its engine as many at a time.
    """
    numbers = [int(number) for number in streams.split(",")]
    manifest = json.loads((bundle / "bundle.json").read_text())
    if manifest.get("encoder") is not None:
        peers = (llama_server, gguf, triton, openvino_python, openvino_model)
        _measure_encoder(bundle, numbers, requests, prompt_tokens, repeats, threads, output, peers)
        return
    common = {"threads": threads, "slots": max(numbers), "capacity": capacity}
    settings = {"model": str(bundle), "prefix_rows": PREFIX_ROWS, **common}
    ours = [
        Contestant(name, module, Path(sys.executable), settings)
        for name, module in (("engine", "engine"), ("serve-llm http", "http_server"))
    ]
    if triton:
        ours.append(Contestant("Triton", "triton", Path(sys.executable), settings))
    contestants = list(ours)
    if llama_server and gguf:
        settings = {"model": str(gguf), "program": str(llama_server), **common}
        contestants.append(
            Contestant("llama-server", "llama_server", Path(sys.executable), settings)
        )
    if openvino_python and openvino_model:
        settings = {"model": str(openvino_model), **common}
        contestants.append(Contestant("OpenVINO", "openvino", openvino_python, settings))
    prompts = Prompts(1, manifest["graph"]["vocab_size"])
    LOG.parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for contestant in contestants:
            contestant.start(stack, LOG)
        for contestant, number, timelines in _rounds(
            contestants, numbers, prompts, requests, prompt_tokens, new_tokens, repeats
        ):
            contestant.rounds.setdefault(number, []).append(timelines)
        shared = {
            contestant.name: _shared_prefix(contestant, prompts, shared_prefix, repeats)
            for contestant in ours
        }
    document = {
        "bundle": bundle.name,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "requests_per_stream": requests,
        "repeats": repeats,
        **common,
        "contestants": [_result(contestant, contestants[0]) for contestant in contestants],
        "shared_prefix": {"tokens": shared_prefix, "first_token_seconds": shared},
    }
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n")
    for line in [*_lines(contestants), *_lines_beside(contestants[1:], contestants[0])]:
        click.echo(line)
    for name, (miss, hit) in shared.items():
        click.echo(f"{name}, first token: {1000 * miss:.0f} ms, {1000 * hit:.0f} on a hit")


def _measure_encoder(
    bundle: Path,
    clients: list[int],
    requests: int,
    tokens: int,
    repeats: int,
    threads: int,
    output: Path | None,
    peers: tuple[Any, ...],
) -> None:
    from scripts.load.encoders import lines, measure

    if any(peers):
        raise click.ClickException("Encoders are measured without peers: leave them out.")
    try:
        rates = measure(bundle, clients, requests, tokens, repeats, threads)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if output:
        output.write_text(json.dumps([asdict(each) for each in rates], indent=1) + "\n")
    for line in lines(rates):
        click.echo(line)


def _rounds(
    contestants: Sequence[Contestant],
    numbers: list[int],
    prompts: Prompts,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
) -> Iterator[tuple[Contestant, int, list[Timeline]]]:
    """Every contestant serves the same load in each round, beginning with another one."""
    for contestant in contestants:  # warmed up, not counted
        contestant.run(max(numbers), [prompts.next(prompt_tokens) for _ in numbers], 4)
    for round_number in range(repeats):
        first = round_number % len(contestants)
        for number in numbers:
            load = [prompts.next(prompt_tokens) for _ in range(number * requests)]
            for contestant in [*contestants[first:], *contestants[:first]]:
                time.sleep(PAUSE_SECONDS)
                yield contestant, number, contestant.run(number, load, new_tokens)


def _shared_prefix(
    contestant: Contestant, prompts: Prompts, tokens: int, repeats: int
) -> tuple[float, float]:
    """Median seconds to the first token of prompts whose beginning is new, and known."""
    first, second = [], []
    for _ in range(repeats):
        beginning = prompts.next(tokens)
        pair = [beginning + prompts.next(OWN_TOKENS) for _ in range(2)]
        miss, hit = contestant.run(1, pair, 2)
        first.append(miss.first_token_seconds)
        second.append(hit.first_token_seconds)
    return statistics.median(first), statistics.median(second)


def _result(contestant: Contestant, engine: Contestant) -> dict[str, Any]:
    loads = {
        number: asdict(figures(rounds)) | asdict(beside(rounds, engine.rounds[number]))
        for number, rounds in contestant.rounds.items()
    }
    return {"name": contestant.name, "version": contestant.version, "streams": loads}


def _lines(contestants: Sequence[Contestant]) -> Iterator[str]:
    """A line for each contestant and load: rates, and milliseconds."""
    yield "contestant, streams: tokens/s, times one stream; first token p50, p99; gap p50, p99, max"
    for contestant in contestants:
        alone = figures(contestant.rounds[min(contestant.rounds)]).tokens_per_second
        for number, rounds in contestant.rounds.items():
            f = figures(rounds)
            latencies = [f.first_token_median, f.first_token_99th, f.gap_median, f.gap_99th]
            milliseconds = [f"{1000 * value:.0f}" for value in [*latencies, f.gap_longest]]
            yield (
                f"{contestant.name}, {number}: {f.tokens_per_second:.1f}, "
                f"{f.tokens_per_second / alone:.2f}; {', '.join(milliseconds[:2])}; "
                f"{', '.join(milliseconds[2:])} ms"
            )


def _lines_beside(contestants: Sequence[Contestant], engine: Contestant) -> Iterator[str]:
    """A line for each contestant and load: medians of rounds, beside the engine alone."""
    for contestant in contestants:
        for number, rounds in contestant.rounds.items():
            b = beside(rounds, engine.rounds[number])
            yield (
                f"{contestant.name}, {number}: {b.rate_ratio:.3f} of the engine's rate, first "
                f"token {1000 * b.first_token_delay:+.1f} ms"
            )
