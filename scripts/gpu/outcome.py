"""A step of the check: run in a process of its own, with a time limit, and what came of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Figure:
    """One thing that was seen; ``wanted`` says what it should be, where that was said before."""

    name: str
    value: str
    wanted: str = ""


@dataclass(frozen=True)
class Step:
    """A part of the check; its process may take ``limit`` seconds."""

    name: str
    title: str
    limit: float
    command: tuple[str, ...] = ()

    def process(self, result: Path) -> list[str]:
        """What runs it and writes its figures to ``result``."""
        command = self.command or (sys.executable, "-m", "scripts.gpu.worker", self.name)
        return [*command, str(result)]


@dataclass(frozen=True)
class Outcome:
    """What came of a step: figures, perhaps a part of them, and the reason if it failed."""

    title: str
    seconds: float
    figures: tuple[Figure, ...] = ()
    reason: str = ""

    def as_text(self) -> str:
        """Lines for the terminal."""
        lines = [f"  {figure.name}: {figure.value}" for figure in self.figures]
        end = f"failed: {self.reason}" if self.reason else "done"
        return "\n".join([*lines, f"  {end} ({self.seconds:.0f} s)"])


@dataclass
class Recorder:
    """Figures of a running step, in a file that is complete after each of them."""

    file: Path
    figures: list[Figure] = field(default_factory=list)

    def record(self, name: str, value: str, wanted: str = "") -> None:
        """Add one figure."""
        self.figures.append(Figure(name, value, wanted))
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps([asdict(figure) for figure in self.figures]))
        partial.replace(self.file)


def run_step(step: Step, scratch: Path, *, seconds_left: float) -> Outcome:
    """Run a step until it ends, its limit or the whole check's is over; nothing is raised."""
    limit = min(step.limit, seconds_left)
    if limit <= 0:
        return Outcome(step.title, 0.0, reason="no time was left for it")
    result, log = scratch / f"{step.name}.json", scratch / f"{step.name}.log"
    begin = monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            step.process(result),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
            reason = _last_line(log) if process.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"it was stopped after {limit:.0f} s"
        finally:
            _end(process)
    return Outcome(step.title, monotonic() - begin, _read(result), reason)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the step's process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def _read(result: Path) -> tuple[Figure, ...]:
    if not result.exists():
        return ()
    return tuple(Figure(**figure) for figure in json.loads(result.read_text()))
