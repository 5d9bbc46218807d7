"""The log that TensorRT writes to, whether it builds an engine or runs one."""

import functools
import re
from typing import Any

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


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
