"""A package as it is read before it is sent."""

import hashlib
import json
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.edge.archives import SIGNATURE, SUMS, identity
from scripts.edge.contents import DESCRIPTION, FORMAT_VERSION
from scripts.edge.sealing import SUFFIX
from serving.closing import Closing
from serving.errors import UserError

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


class Package(Closing):
    """An opened package; a context manager that closes it.

    ``id`` is what it is known by, ``sums`` its list of checksums, ``architecture`` the processors
    that it is for. Raises UserError if ``path`` is no package of scripts/edge/pack.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = tarfile.open(path, "r:")  # noqa: SIM115
        except (OSError, tarfile.TarError) as error:
            raise self._unlike(str(error)) from error
        try:
            self._read()
        except (tarfile.TarError, KeyError, ValueError) as error:
            self.close()
            raise self._unlike(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its file."""
        self._archive.close()

    @property
    def names(self) -> list[str]:
        """Its files, by what they are called when they are decrypted."""
        return list(self._members)

    @property
    def always(self) -> list[tarfile.TarInfo]:
        """What travels whatever the device has: the signature, if there is one."""
        return [self._signature] if self._signature else []

    def members(self, names: list[str]) -> list[tarfile.TarInfo]:
        """What is in the archive of files that a device asks for."""
        return [self._members[name] for name in names if name in self._members]

    def open(self, member: tarfile.TarInfo) -> IO[bytes]:
        """Open a file of the archive."""
        file = self._archive.extractfile(member)
        assert file is not None, "no regular file"
        return file

    def unpack(self, members: list[tarfile.TarInfo], folder: Path) -> None:
        """Write files into a folder."""
        self._archive.extractall(folder, members, filter="data")

    def is_encrypted(self, member: tarfile.TarInfo) -> bool:
        """Whether a file is decrypted on the device."""
        return member.name.endswith(SUFFIX)

    def _read(self) -> None:
        found = {member.name: member for member in self._archive}
        for member in found.values():
            if not member.isreg() or not _is_inside(member.name):
                raise ValueError(f"{member.name!r} is no file that belongs there")
        self.sums = self.open(found.pop(SUMS)).read()
        self._signature = found.pop(SIGNATURE, None)
        self._members = {}
        for line in self.sums.decode().splitlines():
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{SUMS} has a line {line!r}")
            name = match[2]
            member = found.pop(name if name in found else name + SUFFIX)
            self._members[name] = member
            if name == DESCRIPTION:
                self._describe(self.open(member).read(), match[1])
        if found:
            raise ValueError(f"{next(iter(found))!r} isn't in {SUMS}")

    def _describe(self, content: bytes, sha256: str) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{DESCRIPTION} has changed")
        description = json.loads(content)
        if description["format_version"] > FORMAT_VERSION:
            raise UserError(f"{self._path} was packed by a newer export-llm: upgrade this one.")
        self.architecture: str = description["architecture"]
        self.id = identity(description["version"], self.sums)

    def _unlike(self, reason: str) -> UserError:
        return UserError(
            f"{str(self._path)!r} is no package of scripts/edge/pack --format tar ({reason}): "
            "pack the bundle again."
        )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
