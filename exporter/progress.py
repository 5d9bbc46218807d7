"""What the export command shows: the stage that runs, and the plan."""

import json
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from exporter.plan import Plan, megabytes


class _PhaseBar(BarColumn):
    """A bar for the tasks that are part of a stage."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.fields.get("is_phase") else Text()


class StageDisplay:
    """Shows each stage with its time on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            _PhaseBar(bar_width=30),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._phase: TaskID | None = None

    def start(self, name: str) -> None:
        """A stage begins; the one before it is done."""
        self._finish()
        self._progress.add_task(name, total=1)

    def progress(self, phase: str, done: float) -> None:
        """A part of the stage is at work, and ``done``, from 0 to 1, of the parts are done."""
        if self._phase is None:
            self._phase = self._progress.add_task("", total=1.0, is_phase=True)
        self._progress.update(self._phase, description=f"  {phase}", completed=done)

    def _finish(self) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase)
            self._phase = None
        for task in self._progress.task_ids:
            self._progress.update(task, completed=1)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """Print what an export would do and need."""
    size = f"{plan.parameters:,} parameters, {len(plan.layers)} layers"
    ranks = f" over {plan.tensor_parallel} ranks" if plan.tensor_parallel > 1 else ""
    rows = {
        "architecture": f"{plan.architecture}, {size}",
        "precision": plan.dtype,
        "targets": ", ".join(plan.targets) + ranks,
        "stages": str(plan.stages),
        "most tokens": f"{plan.max_length:,}",
        "weights": megabytes(plan.weight_bytes),
        "cache a token": f"{plan.kv_bytes_per_token / 1e3:,.1f} kB",
        "cache a full sequence": megabytes(plan.kv_bytes_per_token * plan.max_length),
        "memory to export": f"about {megabytes(plan.export_memory)}",
        "disk": f"about {megabytes(plan.disk)}",
    }
    print_rows(f"Plan for {plan.model}", rows, plan.as_dict(), as_json=as_json)


def print_rows(title: str, rows: dict[str, str], data: dict[str, Any], *, as_json: bool) -> None:
    """Print a table of names and values, or ``data`` as JSON."""
    if as_json:
        print(json.dumps(data, indent=2))
        return
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
