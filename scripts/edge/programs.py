"""Running the programs of others: ssh-keygen, age, dpkg-deb, cmake, pip."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from serving.errors import UserError


def run_program(
    *command: str | Path,
    package: str,
    purpose: str,
    stdin: bytes | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program and return what it prints.

    Raises UserError with its last line if it fails, and with Debian's ``package`` if there is none.
    """
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    try:
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            check=False,
            env={**os.environ, **(environment or {})},
            **given,  # type: ignore[call-overload]
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{purpose} needs {command[0]}, which isn't installed: install Debian's {package}."
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace")
        last = said.strip().splitlines()[-1] if said.strip() else f"status {done.returncode}"
        raise UserError(f"{purpose} failed, {command[0]} says: {last}")
    output: bytes = done.stdout
    return output
