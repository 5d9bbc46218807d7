"""A device, reached with OpenSSH and the user's own configuration of it."""

import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from serving.closing import Closing
from serving.errors import UserError

SCRIPT = (Path(__file__).with_name("device") / "device.sh").read_text()
ALIVE_SECONDS = 15
"""A device that doesn't answer for three times as long is lost."""
LOST = 255
"""The status of ssh where the connection, and not the command, failed."""


class Host(Closing):
    """A connection that all commands share, so that whoever logs in is asked once.

    ``name`` and ``config`` are as ssh takes them; ``root`` is where packages are on the device.
    Closing it ends the connection. Raises UserError if there is none.
    """

    def __init__(self, name: str, root: str, *, config: Path | None, sudo: bool) -> None:
        self.name = name
        self.root = root
        self._sudo = sudo
        # Sockets have short names, so not where temporary files of the user may be.
        self._folder = TemporaryDirectory(prefix="edge-", dir="/tmp")
        self._socket = Path(self._folder.name) / "ssh"
        self._ssh = ["ssh", *(("-F", str(config)) if config else ())]
        self._ssh += ["-o", f"ControlPath={self._socket}"]
        with (Path(self._folder.name) / "errors").open("w+") as errors:
            self._connection = self._connect(errors)

    def close(self) -> None:
        """End the connection."""
        self._connection.terminate()
        self._connection.wait()
        self._folder.cleanup()

    def run(self, command: str, *arguments: str, stdin: bytes = b"") -> list[str]:
        """Run a command of the device's script; returns the lines that it prints.

        Raises UserError with the device's sentence if it fails.
        """
        done = subprocess.run(
            self.command(command, *arguments), input=stdin, capture_output=True, check=False
        )
        self.check(done.returncode, done.stderr)
        return done.stdout.decode().splitlines()

    def write(self, produce: Callable[[IO[bytes]], None], command: str, *arguments: str) -> None:
        """Run a command whose standard input is what ``produce`` writes. Raises as ``run`` does."""
        with subprocess.Popen(
            self.command(command, *arguments),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            with suppress(BrokenPipeError):  # the status says why
                produce(process.stdin)
            with suppress(BrokenPipeError):
                process.stdin.close()
            errors = process.stderr.read()
        self.check(process.returncode, errors)

    def follow(self, command: str) -> None:
        """Run a command at this terminal until it ends or is interrupted; raises as ``run``."""
        try:
            status = subprocess.run(self.command(command, terminal=True), check=False).returncode
        except KeyboardInterrupt:
            return
        self.check(status, b"")

    def command(self, *arguments: str, terminal: bool = False) -> list[str]:
        """The command line that runs the device's script there."""
        script, root = shlex.quote(SCRIPT), shlex.quote(self.root)
        remote = f"{self.become}sh -c {script} device {arguments[0]} {root} "
        remote += shlex.join(arguments[1:])
        options = ("-o", "ControlMaster=no", "-t" if terminal else "-T", "--")
        return [*self._ssh, *options, self.name, remote]

    @property
    def transport(self) -> str:
        """The command that rsync reaches the device with."""
        return shlex.join([*self._ssh, "-o", "ControlMaster=no"])

    @property
    def become(self) -> str:
        """What commands on the device begin with."""
        return "sudo -n " if self._sudo else ""

    def check(self, status: int, errors: bytes) -> None:
        """Raise UserError if a command that ended with ``status`` failed."""
        if status == LOST or (status and self._connection.poll() is not None):
            raise UserError(
                f"The connection to {self.name} was lost; what it served it still serves: run the "
                "command again."
            )
        if status:
            said = errors.decode(errors="replace").strip().splitlines() or [f"status {status}"]
            raise UserError(f"{self.name}: {said[-1]}")

    def _connect(self, errors: IO[str]) -> "subprocess.Popen[bytes]":
        options = ("-o", "ControlMaster=yes", "-o", f"ServerAliveInterval={ALIVE_SECONDS}")
        process = subprocess.Popen(
            [*self._ssh, *options, "-N", "--", self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while not self._socket.exists():
                if process.poll() is not None:
                    errors.seek(0)
                    said = errors.read().strip().splitlines() or ["no reason given"]
                    raise UserError(
                        f"{self.name!r} can't be reached ({said[-1]}): see that `ssh {self.name}` "
                        "works."
                    )
                time.sleep(0.02)
        except BaseException:
            process.kill()
            process.wait()
            self._folder.cleanup()
            raise
        return process
