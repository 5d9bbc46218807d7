"""What a server writes: kept, passed on where a person should see it, and read for reasons."""

import re
from collections import deque
from collections.abc import Iterable
from typing import TextIO

# An entry begins with a letter for its level, the month and the day; what follows belongs to it.
_ENTRY = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d")

_LOADING = re.compile(r'"loading: (\S+):\d+"')

_FAILURE = re.compile(
    r"(?:failed to load|failed to poll model|Poll failed for model directory) '(?P<model>[^']+)'"
    r"(?: version (?P<version>\d+))?: (?P<reason>.*)\"$"
)

# Of what Triton puts before a model's own reason.
_KINDS = re.compile(r"^(?:(?:Internal|Invalid argument|Unavailable|Not found)[:-] ?)+")

_USAGE = "Usage: tritonserver"

_KEPT_LINES = 2000
_LAST_LINES = 8


class ServerLog:
    """A server's log: to ``sink`` goes all of it, or what isn't information once it ``is_ready``.

    What is said before that matters only if the server doesn't get ready.
    """

    def __init__(self, sink: TextIO, *, verbose: bool) -> None:
        self._sink = sink
        self._verbose = verbose
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.loading: str | None = None
        self.is_ready = False

    def follow(self, output: Iterable[str]) -> None:
        """Take the lines of a server's output until it ends."""
        level = "I"
        for line in output:
            if entry := _ENTRY.match(line):
                level = entry[1]
            if found := _LOADING.search(line):
                self.loading = found[1]
            self._lines.append(line)
            if self._verbose or (self.is_ready and level != "I"):
                self._sink.write(line)
                self._sink.flush()

    def failures(self) -> list[str]:
        """A sentence for each model that didn't load."""
        found = (_FAILURE.search(line) for line in self._lines)
        return list(dict.fromkeys(_sentence(match) for match in found if match))

    def end(self) -> str:
        """Its last lines; if an option is wrong, what is said of it beside all the others."""
        before, usage, after = "".join(self._lines).partition(_USAGE)
        if usage:
            return before.strip() or after.strip().rpartition("\n\n")[2]
        return "\n".join(before.splitlines()[-_LAST_LINES:])


def _sentence(failure: re.Match[str]) -> str:
    # The log has newlines as \n; a traceback begins after an empty line.
    reason = failure["reason"].split(r"\n\nAt:")[0].replace(r"\n", " ").strip()
    version = f" (version {failure['version']})" if failure["version"] else ""
    return f"The model {failure['model']}{version} didn't load: {_KINDS.sub('', reason)}"
