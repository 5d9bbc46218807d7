"""Sending a package to a device, whole or what it changes, and switching to it."""

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from scripts.edge.architectures import ARCHITECTURES
from scripts.edge.host import Host
from scripts.edge.package import Package
from serving.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MARGIN = 16 << 20
"""Bytes of a device's disk that a package leaves free."""

Progress = Callable[[float], None]


class Delivery(NamedTuple):
    """What was done: ``sent`` of ``files`` files travelled, in ``bytes_sent`` bytes."""

    current: str
    previous: str | None
    files: int
    sent: int
    bytes_sent: int


def deliver(host: Host, package: Package, *, only_changes: bool, progress: Progress) -> Delivery:
    """Send a package, have the device check it, and switch to it.

    With ``only_changes``, files that the device has in an installed version don't travel.
    ``progress`` gets the share of the bytes that are sent. Raises UserError if the device refuses,
    or the connection is lost; then it serves what it did.
    """
    device = _facts(host.run("probe"))
    _check_architecture(host, package, device["machine"])
    before = device["current"]
    if only_changes and not before:
        raise UserError(f"Nothing is installed on {host.name} to update: deploy a package first.")
    if only_changes and before == package.id:
        return Delivery(before, before, len(package.names), 0, 0)
    lacking, free = _offer(host, package, only_changes)
    members = package.members(lacking)
    _check_space(host, package, members, free)
    members += package.always
    if device["rsync"] == "yes" and shutil.which("rsync"):
        sent = _send_with_rsync(host, package, members, progress, basis=only_changes)
    else:
        sent = _send_as_tar(host, package, members, progress)
    host.run("install", package.id)
    return Delivery(package.id, before or None, len(package.names), len(lacking), sent)


def _facts(lines: list[str]) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in lines)


def _check_architecture(host: Host, package: Package, machine: str) -> None:
    wanted = ARCHITECTURES[package.architecture].machine
    if machine != wanted:
        raise UserError(
            f"The package is for {package.architecture}, and {host.name} is {machine}: pack the "
            "bundle with another --arch."
        )


def _offer(host: Host, package: Package, only_changes: bool) -> tuple[list[str], int]:
    """The files that the device lacks, and how many bytes it has free."""
    link = ("link",) if only_changes else ()
    free, *rest = host.run("offer", package.id, *link, stdin=package.sums)
    return [line.removeprefix("send ") for line in rest], int(free.split()[1]) * 1024


def _check_space(host: Host, package: Package, members: list[tarfile.TarInfo], free: int) -> None:
    # A file that is decrypted is there twice until that is done.
    twice = max((m.size for m in members if package.is_encrypted(m)), default=0)
    needed = sum(member.size for member in members) + twice + MARGIN
    if needed > free:
        host.run("abandon", package.id)
        raise UserError(
            f"{host.name} has {free:,} bytes free in {host.root}, and the package needs "
            f"{needed:,}: make room there."
        )


class _Counting(io.RawIOBase):
    """A file that is written to, and how many bytes were."""

    def __init__(self, file: IO[bytes], expected: int, progress: Progress) -> None:
        super().__init__()
        self._file = file
        self._expected = expected
        self._progress = progress
        self.bytes = 0

    def write(self, data: "ReadableBuffer") -> int:
        count = self._file.write(data)
        self.bytes += count
        self._progress(self.bytes / self._expected)
        return count


def _send_as_tar(
    host: Host, package: Package, members: list[tarfile.TarInfo], progress: Progress
) -> int:
    expected = sum(member.size for member in members) + tarfile.RECORDSIZE
    sent = 0

    def produce(file: IO[bytes]) -> None:
        nonlocal sent
        counting = _Counting(file, expected, progress)
        with tarfile.open(mode="w|", fileobj=counting, format=tarfile.GNU_FORMAT) as archive:
            for member in members:
                archive.addfile(member, package.open(member))
        sent = counting.bytes

    host.write(produce, "receive", package.id)
    return sent


def _send_with_rsync(
    host: Host,
    package: Package,
    members: list[tarfile.TarInfo],
    progress: Progress,
    *,
    basis: bool,
) -> int:
    """Parts of files that were cut off, or are in the current version, needn't travel again."""
    with tempfile.TemporaryDirectory(prefix="edge-") as temporary:
        package.unpack(members, Path(temporary))
        command = ["rsync", "--recursive", "--partial", "--ignore-times", "--chmod=D755,F644"]
        command += ["--no-human-readable", "--info=progress2", "--stats"]
        command.append(f"--rsh={host.transport}")
        if basis:
            command.append(f"--copy-dest={host.root}/current")
        if host.become:
            command.append(f"--rsync-path={host.become}rsync")
        command += [f"{temporary}/", f"{host.name}:{host.root}/incoming/{package.id}/"]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            sent = _follow(process, progress)
            status = process.wait()
            errors.seek(0)
            host.check(_UNCONNECTED.get(status, status), errors.read())
    return sent


# What rsync says of a connection that ended, in terms of ssh.
_UNCONNECTED = {10: 255, 12: 255, 30: 255}


def _follow(process: "subprocess.Popen[bytes]", progress: Progress) -> int:
    """Read what rsync prints while it sends; returns how many bytes it sent."""
    assert process.stdout is not None
    text = ""
    while data := process.stdout.read1(4096):  # type: ignore[attr-defined]
        text = (text + data.decode(errors="replace"))[-4096:]
        if shares := re.findall(r" (\d+)% ", text):
            progress(int(shares[-1]) / 100)
    found = re.search(r"Total bytes sent: (\d+)", text)
    return int(found[1]) if found else 0
