"""What TensorRT calls while it builds: a progress monitor and a writer.

Their base classes come from the library that was loaded, so each is made by a function.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

Progress = Callable[[str, float], None]
"""Called with a phase's name and how much of the build is done, from 0 to 1, on any thread."""


def show_nothing(phase: str, done: float) -> None:
    """A ``Progress`` that is shown nowhere."""


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
