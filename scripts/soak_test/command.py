"""The command line of scripts/soak, and a whole soak for others to run."""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from scripts.soak_test.cases import make_cases
from scripts.soak_test.growth import growths, leaks
from scripts.soak_test.phases import Plan, soak
from scripts.soak_test.server import Server, running_server
from scripts.soak_test.tally import Tally
from tests.serving.tiny_bundle import make_bundle

# What a JSON answer needs is among them.
_LETTERS = 'abcdefilnorstu0123456789 {}":,.'
_CASES = 200
_SLOTS = 4


def run_soak(bundle: Path, plan: Plan, directory: Path, cases: int = _CASES) -> dict[str, Any]:
    """Soak a server over a bundle; ``breaches`` of the result says what went wrong.

    The server's log is written into the directory.
    """
    tally = Tally()
    known = make_cases(bundle, cases, random.Random(plan.seed))
    with running_server(bundle, directory / "server.log", _SLOTS) as server:
        begin = perf_counter()
        samples = asyncio.run(soak(server, known, plan, tally))
        seconds = perf_counter() - begin
        _check_end(server, tally)
    found = growths(samples)
    for leak in leaks(found):
        tally.breach(leak)
    return {
        "plan": asdict(plan),
        "seconds": round(seconds, 1),
        "requests": tally.requests,
        "different_answers": len({case.answer.choices for case in known}),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "growth": [asdict(each) for each in found],
        "samples": [asdict(sample) for sample in samples],
        "breaches": tally.breaches,
    }


def tiny_bundle(directory: Path) -> Path:
    """A bundle of a tiny model, which writes JSON if it is made to."""
    return make_bundle(directory / "model", letters=_LETTERS)


def _check_end(server: Server, tally: Tally) -> None:
    """The server must end when it is told to, and its log must have no errors."""
    try:
        if code := server.stop():
            tally.breach(f"the server ended with code {code}")
    except subprocess.TimeoutExpired:
        tally.breach("the server doesn't end")
    for line in server.errors():
        tally.breach(f"the log: {line[:1000]}")


@click.command()
@click.argument(
    "bundle", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--requests", type=click.IntRange(1), default=24_000, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=48, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="A JSON file.")
def main(
    bundle: Path | None, requests: int, clients: int, rounds: int, seed: int, output: Path | None
) -> None:
    """Put serve-llm http over a BUNDLE (default: of a tiny model) under load of all kinds.

    Clients that leave at any moment, read slowly or not at all, and send nonsense, beside others
    that compare their greedy answers with those of the engine alone. Exits with 1 if an answer is
    wrong or never comes, something isn't freed, or memory or open files grow.
    """
    with tempfile.TemporaryDirectory() as directory:
        plan = Plan(requests, clients, rounds, seed, outlasts=True)
        result = run_soak(bundle or tiny_bundle(Path(directory)), plan, Path(directory))
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(f"{result['requests']:,} requests in {result['seconds']:.0f} s")
    for outcome, number in result["outcomes"].items():
        click.echo(f"  {outcome}: {number:,}")
    for each in result["growth"]:
        click.echo(
            f"{each['what']}: {each['mean']:.1f}, at most {each['highest']:.1f}; "
            f"{each['slope']:+.4f} for 1,000 requests, {each['growth']:+.2f} in all"
        )
    for breach in result["breaches"]:
        click.echo(f"BREACH {breach}")
    sys.exit(1 if result["breaches"] else 0)
