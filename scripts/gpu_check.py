#!/usr/bin/env python3
"""Check and measure this project on an NVIDIA GPU, and write what was seen into docs/gpu.md.

    scripts/gpu_check                      everything, in at most ten minutes
    scripts/gpu_check --only rates         some steps (--only may be given several times)

It needs this checkout and what is importable: torch with CUDA, transformers, onnxruntime-gpu and
tensorrt_rtx. Each step runs in a process of its own. One that fails or takes too long is recorded
with its reason, and the others go on.
"""

import sys
import tempfile
from pathlib import Path
from time import monotonic

import click

ROOT = Path(__file__).resolve().parents[1]
# The root in place of this folder: steps import the checkout, and what is here has other names.
sys.path[0] = str(ROOT)

from scripts.gpu.machine import describe_machine, why_no_gpu  # noqa: E402
from scripts.gpu.outcome import Outcome, run_step  # noqa: E402
from scripts.gpu.page import replace_results, results_page  # noqa: E402
from scripts.gpu.steps import STEPS  # noqa: E402

ALL_SECONDS = 570.0  # of ten minutes, to end in order


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
@click.option(
    "--only", multiple=True, type=click.Choice([step.name for step in STEPS]), help="Run this step."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "docs" / "gpu.md",
    help="The page whose results are replaced (default: docs/gpu.md).",
)
def main(only: tuple[str, ...], out: Path) -> None:
    if reason := why_no_gpu():
        raise click.ClickException(
            f"There is no NVIDIA GPU here ({reason}): run scripts/gpu_check on a machine with one."
        )
    machine = describe_machine()
    for name, value in machine.items():
        click.echo(f"{name}: {value}")
    outcomes: list[Outcome] = []
    end = monotonic() + ALL_SECONDS
    with tempfile.TemporaryDirectory(prefix="gpu_check.") as scratch:
        for step in STEPS:
            if only and step.name not in only:
                continue
            click.echo(f"\n{step.title} ...")
            outcome = run_step(step, Path(scratch), seconds_left=end - monotonic())
            outcomes.append(outcome)
            click.echo(outcome.as_text())
            # After every step: what was seen stays if the machine is taken away.
            replace_results(out, results_page(machine, outcomes))
    click.echo(f"\nWritten to {out}.")
    if any(outcome.reason for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
