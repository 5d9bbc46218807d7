"""What TensorRT calls while it builds: a log, a progress monitor, a writer.

Their base classes come from the library that was loaded, so each is made by a function.
"""

import functools
import re
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

Progress = Callable[[str, float], None]
"""Called with a phase's name and how much of it is done, from 0 to 1, on any thread."""

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


def make_monitor(library: Any, progress: Progress, cancelled: threading.Event) -> Any:
    """Make a monitor that calls ``progress`` and ends the build once it is cancelled."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self.steps[phase] = steps
            progress(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, (step + 1) / self.steps[phase])
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            progress(phase, 1.0)

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
