"""Writing packages: the same files give the same bytes."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.edge.architectures import ARCHITECTURES
from scripts.edge.contents import DEVICE, Files, Settings
from scripts.edge.programs import run_program
from serving.errors import UserError

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
DEBIAN_ROOT = "opt/export-llm"


def checksums(files: Files) -> bytes:
    """The SHA-256 of each file, as ``sha256sum --check`` reads it."""
    lines = []
    for name in sorted(files):
        if "\\" in name or "\n" in name:
            raise UserError(f"{name!r} can't be in a package: rename it in the bundle.")
        with _opened(files[name]) as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines).encode()


def identity(version: str, sums: bytes) -> str:
    """What a package is known by: its version, and the start of its checksums' SHA-256."""
    return f"{version}-{hashlib.sha256(sums).hexdigest()[:12]}"


@contextmanager
def written(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a name to write to, which is ``path`` afterwards. Raises UserError if that exists."""
    if path.exists() and not force:
        raise UserError(f"{path} exists: choose another name, or pass --force to replace it.")
    if not path.parent.is_dir():
        raise UserError(f"There is no directory {str(path.parent)!r}: make it first.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_tar(path: Path, files: Files, made: datetime) -> None:
    """Write files in order of their names, all by root and of one time."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.mode = mode(name)
            member.mtime = int(made.timestamp())
            member.uname = member.gname = "root"
            with _opened(files[name]) as file:
                member.size = file.seek(0, os.SEEK_END)
                file.seek(0)
                archive.addfile(member, file)


def write_deb(path: Path, files: Files, settings: Settings, made: datetime) -> None:
    """Write a Debian package of a version, which its installation switches to."""
    with TemporaryDirectory(prefix=".packing-", dir=path.parent) as temporary:
        root = Path(temporary)
        version = identity(settings.version, content(files[SUMS]))
        _place(root / DEBIAN_ROOT / "versions" / version, files)
        _place(root / DEBIAN_ROOT, {"device.sh": DEVICE / "device.sh"})
        _place(root / "usr/share/doc/export-llm-package", {"copyright": _copyright()})
        _place(root / "DEBIAN", _control(settings, version))
        for name in ("postinst", "prerm"):
            (root / "DEBIAN" / name).chmod(0o755)
        for file in (root, *root.rglob("*")):
            os.utime(file, (made.timestamp(), made.timestamp()))
            if file.is_dir():
                file.chmod(0o755)
        run_program(
            *("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, path),
            package="dpkg",
            purpose="Writing the .deb",
            environment={"SOURCE_DATE_EPOCH": str(int(made.timestamp()))},
        )


def mode(name: str) -> int:
    """The permissions of a file of a package."""
    return 0o755 if name.startswith("bin/") else 0o644


def content(file: bytes | Path) -> bytes:
    """What is in a (small) file."""
    return file if isinstance(file, bytes) else file.read_bytes()


def _opened(file: bytes | Path) -> io.BufferedIOBase:
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def _place(folder: Path, files: Files) -> None:
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, bytes):
            path.write_bytes(file)
        else:
            shutil.copyfile(file, path)
        path.chmod(mode(name))


def _control(settings: Settings, version: str) -> Files:
    control = f"""\
Package: export-llm-package
Version: {settings.version}
Architecture: {ARCHITECTURES[settings.architecture].debian}
Maintainer: export-llm <export-llm@localhost>
Section: misc
Priority: optional
Depends: libc6 (>= 2.34), libgcc-s1, libstdc++6 (>= 12)
Description: language model with the runtime that serves it
 Weights, tokenizer, llm-run and ONNX Runtime, packed by export-llm.
"""
    # dpkg can install below another root, whose services aren't this machine's.
    begin = f"""\
#!/bin/sh
set -e
root=${{DPKG_ROOT-}}/{DEBIAN_ROOT}
"""
    postinst = f"""\
{begin}if [ "$1" = configure ]; then
    sh "$root/device.sh" adopt "$root" {version}
    if [ -z "${{DPKG_ROOT-}}" ] && [ -d /run/systemd/system ]; then
        sh "$root/device.sh" start "$root"
    fi
fi
"""
    prerm = f"""\
{begin}if [ "$1" = remove ]; then
    sh "$root/device.sh" remove "$root"
fi
"""
    return {"control": control.encode(), "postinst": postinst.encode(), "prerm": prerm.encode()}


def _copyright() -> bytes:
    text = f"Licences are in /{DEBIAN_ROOT}/versions/*/licenses; the model has its own.\n"
    return text.encode()
