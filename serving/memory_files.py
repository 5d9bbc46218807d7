"""A directory in memory (tmpfs), for engines that open their files by path.

ONNX Runtime maps weights only from a real path: it refuses a memfd's (/proc/self/fd/N), and what is
given to it as buffers it copies. Files here are mapped, so that memory holds the weights once, and
go on being mapped when the directory is gone.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from serving.errors import UserError
from serving.loading import free_memory

ROOT = Path("/dev/shm")
_MOUNTS = Path("/proc/mounts")


class MemoryDirectory:
    """A directory in memory that only this user may enter; ``close`` removes it.

    It is locked as long as it is in use. A process that is killed leaves its directory behind, and
    the next one removes it. Raises UserError where there is no such memory, or less than ``size``
    bytes of it.
    """

    def __init__(self, size: int) -> None:
        _refuse_disk()
        prefix = f"export-llm-{os.getuid()}-"
        _remove_abandoned(prefix)
        _refuse_too_large(size)
        self.path, self._lock = _make_locked(prefix)

    def close(self) -> None:
        """Remove the directory; what is mapped from it stays. Must be called once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _make_locked(prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=ROOT))  # mode 0700
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return path, lock
        os.close(lock)  # another process took it for abandoned before it was locked


def _remove_abandoned(prefix: str) -> None:
    """Remove directories that nobody holds a lock on: their processes are gone."""
    for path in ROOT.glob(f"{prefix}*"):
        with suppress(OSError):  # it is in use, gone by now, or somebody else's
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _refuse_too_large(size: int) -> None:
    memory, free = free_memory(), shutil.disk_usage(ROOT).free
    if memory is not None and size > memory:
        raise UserError(
            f"The decrypted bundle needs {size / 1e6:,.0f} MB of memory and {memory / 1e6:,.0f} MB "
            "are free: free memory, or use a smaller model."
        )
    if size > free:
        raise UserError(
            f"The decrypted bundle needs {size / 1e6:,.0f} MB of {ROOT} and {free / 1e6:,.0f} MB "
            "are free: make it larger (mount -o remount,size=, docker run --shm-size)."
        )


def _refuse_disk() -> None:
    mounts = _MOUNTS.read_text().splitlines() if _MOUNTS.exists() else []
    if not any(line.split()[1:3] == [str(ROOT), "tmpfs"] for line in mounts):
        raise UserError(
            f"Encrypted bundles are decrypted into memory, and {ROOT} is no tmpfs here: mount one, "
            "or decrypt the bundle with serve-llm decrypt."
        )
