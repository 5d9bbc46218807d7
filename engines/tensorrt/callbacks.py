"""What TensorRT calls while it builds: a log, a progress monitor, a writer.

Their base classes come from the library that was loaded, so each is made by a function.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

Progress = Callable[[str, float], None]
"""Called with a phase's name and how much of it is done, from 0 to 1, on any thread."""


def make_log(library: Any) -> Any:
    """Make a logger that keeps error messages in ``.errors``."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()


def make_monitor(library: Any, progress: Progress) -> Any:
    """Make a progress monitor that calls ``progress``."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self.steps[phase] = steps
            progress(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, (step + 1) / self.steps[phase])
            return True

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
