"""What TensorRT calls while it builds: a log, a progress monitor, a writer.

Their base classes come from the library that was loaded, so each is made by a function.
"""

import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

Progress = Callable[[str, float], None]
"""Called with a phase's name and how much of the build is done, from 0 to 1, on any thread."""

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


def show_nothing(phase: str, done: float) -> None:
    """A ``Progress`` that is shown nowhere."""


@functools.cache
def make_log(library: Any) -> Any:
    """Return the process's logger: TensorRT takes no second one while the first is in use.

    It keeps messages in ``.errors`` and ``.warnings``, and of the last build the memory of its
    activations for each profile in bytes, in ``.activation_bytes``.
    """

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.activation_bytes: list[int] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == library.ILogger.WARNING:
                self.warnings.append(" ".join(message.split()))
            elif found := _ACTIVATIONS.fullmatch(message):
                self.activation_bytes.append(int(found[1]))

        def clear(self) -> None:
            for kept in (self.errors, self.warnings, self.activation_bytes):
                kept.clear()

    return Log()


@dataclass
class _Phase:
    """A phase of the build, which is part of a step of its parent."""

    parent: "_Phase | None"
    steps: int
    done: int = 0

    def share(self, of_step: float = 0.0) -> float:
        """How much of the build is done, given how much is of this phase's present step."""
        done = min((self.done + of_step) / self.steps, 1.0) if self.steps else of_step
        return done if self.parent is None else self.parent.share(done)


def make_monitor(library: Any, progress: Progress, cancelled: threading.Event) -> Any:
    """Make a monitor that calls ``progress`` and ends the build once it is cancelled."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, _Phase] = {}
            self.done = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.phases[phase] = _Phase(self.phases[parent] if parent else None, steps)
            self.show(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            self.phases[phase].done = step + 1
            self.show(phase)
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            self.phases[phase].done = self.phases[phase].steps
            self.show(phase)

        def show(self, phase: str) -> None:
            self.done = max(self.done, self.phases[phase].share())
            progress(phase, self.done)

    return Monitor()


def make_writer(library: Any, file: BinaryIO) -> Any:
    """Make a writer into ``file``; an OSError ends the build and is kept in ``.error``."""

    class Writer(library.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()
