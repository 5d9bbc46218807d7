"""The output: whole lines only, whatever ended the runs that wrote it."""

import fcntl
import json
from pathlib import Path

from scripts.batch.lines import Key, key_of
from serving.closing import Closing
from serving.errors import UserError


class Output(Closing):
    """A file of results that is added to, and what is in it; a context manager that closes it.

    ``done`` are the keys of the lines that it has, of which ``failed`` are errors. A last line that
    was cut off is taken out. A result has a field named ``result``, unless it is an error. Raises
    UserError if the file is something else, or another run is writing to it.
    """

    def __init__(self, path: Path, result: str = "text") -> None:
        self._result = result
        self.done: set[Key] = set()
        self.failed = 0
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(
                f"{str(path)!r} can't be written ({error.strerror}): give another output."
            ) from error
        try:
            self._lock(path)
            self._read(path)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let another run write to the file."""
        self._file.close()

    def add(self, line: str) -> dict[str, object]:
        """Add a result and return it; from then on it is done, whatever ends the run."""
        try:
            rest = line.encode() + b"\n"
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise UserError(
                f"The output can't be written ({error.strerror}): make room and run the command "
                "again, which goes on where it was."
            ) from error
        return self._note(line.encode())

    def _lock(self, path: Path) -> None:
        """Keep others out for as long as the file is open."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another run is writing to {str(path)!r}: wait for it, or give another output."
            ) from error

    def _read(self, path: Path) -> None:
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    self._note(line)
                except ValueError as error:
                    raise UserError(
                        f"Line {number} of {str(path)!r} is no result of scripts/batch_generate: "
                        "give another output, or take that line out."
                    ) from error
        self._file.truncate(whole)

    def _note(self, line: bytes) -> dict[str, object]:
        """Count a line; raises ValueError if it is no result."""
        result = json.loads(line)
        key = key_of(result, ("id", "line"))
        if key is None or not {self._result, "error"} & result.keys():
            raise ValueError("no result")
        self.done.add(key)
        self.failed += "error" in result
        return result
