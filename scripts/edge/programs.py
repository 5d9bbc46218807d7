"""Running the programs of others: ssh-keygen, age, dpkg-deb, cmake, pip."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from serving.errors import UserError


def run_program(
    *command: str | Path,
    package: str,
    purpose: str,
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program and return what it prints.

    Raises UserError with the line that says why if it fails, or with Debian's ``package``
    if there is none.
    """
    try:
        done = subprocess.run(
            list(map(str, command)),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{purpose} needs {command[0]}, which isn't installed: install Debian's {package}."
        ) from error
    if done.returncode:
        said = f"{done.stdout.decode(errors='replace')}\n{done.stderr.decode(errors='replace')}"
        lines = said.strip().splitlines() or [f"status {done.returncode}"]
        errors = [line for line in lines if "error:" in line.lower()]
        raise UserError(f"{purpose} failed, {command[0]} says: {(errors or lines)[-1].strip()}")
    return done.stdout
