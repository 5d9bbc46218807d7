"""Files with secrets: only their owner may read them, and a change is there completely or not."""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import UserError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: Path) -> bytes:
    """Read a file that nobody but its owner may touch.

    Raises UserError where others may, or it can't be read.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise UserError(
                    f"{str(path)!r} holds secrets, but others than its owner may read or write it: "
                    f"run chmod 600 {path}."
                )
            return file.read()
    except OSError as error:
        raise _unusable(path, error) from error


def write_private(path: Path, content: bytes) -> None:
    """Replace a file, with mode 0600, at once. Raises UserError where it can't be written."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keep other processes from changing the same file; the lock ends with this one."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{str(path)!r} can't be used ({error.strerror}): check the path and its permissions."
    )
