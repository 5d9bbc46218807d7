"""A server that runs: started, waited for, and ended with all that belongs to it."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scripts.triton_server.launch import Addresses, Launch
from scripts.triton_server.log import ServerLog
from scripts.triton_server.triton_api import is_ready
from serving.closing import Closing
from serving.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")
_POLL_SECONDS = 0.05
_LOG_SECONDS = 5
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class Server(Closing):
    """A server and its models' processes, in a session of their own.

    It is told to end when this process dies. Closing it ends what is left of it at once.
    """

    def __init__(self, launch: Launch, addresses: Addresses, log: ServerLog) -> None:
        self._launch = launch
        self.addresses = addresses
        self.log = log
        self._process = subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **launch.environment},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(
            target=log.follow, args=[self._process.stdout], name="log", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the server's own process."""
        return self._process.pid

    def wait_until_ready(self) -> Iterator[str]:
        """Wait until all models are; yields the name of the one that is loaded, again and again.

        Raises UserError if the server ends meanwhile, with the reasons that its log has.
        """
        while not is_ready(self.addresses.url):
            if self._process.poll() is not None:
                self._reader.join(_LOG_SECONDS)
                raise UserError("\n".join(self.log.failures()) or self._no_reason())
            yield self.log.loading or "models"
            time.sleep(_POLL_SECONDS)
        self.log.is_ready = True

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; its exit code, of a signal as a shell has it."""
        code = self._process.wait(timeout)
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """Kill what still runs, and remove what it has left behind."""
        # Its models' processes outlive a server that was killed: ask the group, not the server.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(_LOG_SECONDS)
        if self._launch.removal:
            subprocess.run(self._launch.removal, capture_output=True, check=False)
        if self._launch.shm_prefix:
            for path in _SHARED_MEMORY.glob(f"{self._launch.shm_prefix}*"):
                path.unlink(missing_ok=True)

    def _no_reason(self) -> str:
        code = self._process.returncode
        return f"Triton ended with code {code} before it was ready:\n{self.log.end()}"


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
