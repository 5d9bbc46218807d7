"""Writing a bundle: all of it or nothing, by one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.bundle import MANIFEST, FileInfo, Manifest, file_info
from serving.errors import UserError


@contextmanager
def reserved(bundle: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary sibling of ``bundle`` to write into; it is gone afterwards.

    What a killed run left there is cleared first, and what it moved aside is put back. Raises
    UserError where ``bundle`` exists and ``force`` isn't given, or another process is writing it.
    """
    check_free(bundle, force=force)
    missing = [path for path in bundle.parents if not path.exists()]
    partial = bundle.parent / f".{bundle.name}.partial"
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked_directory(partial, bundle)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "part of its path is a file" if is_file else error.strerror
        raise UserError(f"{bundle} can't be made ({reason}): choose another place.") from error
    try:
        _settle_previous(bundle)
        check_free(bundle, force=force)
        for leftover in partial.iterdir():
            _remove(leftover)
        yield partial
    finally:
        if _is_open_as(descriptor, partial):  # after a commit it may be another process's
            _remove(partial)
        os.close(descriptor)
        for path in missing:
            with suppress(OSError):  # not empty: the bundle is there, or somebody else's file
                path.rmdir()


def commit(partial: Path, bundle: Path, manifest: Manifest, *, force: bool) -> None:
    """Write the manifest last and move the finished directory into place.

    Raises UserError if ``bundle`` came into being meanwhile and ``force`` isn't given.
    """
    (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    check_free(bundle, force=force)
    previous = _previous(bundle)
    if bundle.exists():
        bundle.rename(previous)
    partial.rename(bundle)
    _remove(previous)


def checksums(directory: Path) -> dict[str, FileInfo]:
    """Size and SHA-256 of every file in a directory and below, by its path from there."""
    return {
        file.relative_to(directory).as_posix(): file_info(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def check_free(bundle: Path, *, force: bool) -> None:
    """Raise UserError where a bundle can't be made because something has its name."""
    if not bundle.exists():
        return
    if not force:
        raise UserError(f"{bundle} exists: choose another name, or pass --force to replace it.")
    if not (bundle / MANIFEST).is_file() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise UserError(f"{bundle} exists and is no bundle, so --force leaves it alone.")


def _locked_directory(partial: Path, bundle: Path) -> int:
    """Make ``partial`` if needed and lock it; the lock ends with the process, however it ends."""
    while True:
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"Another process is exporting to {bundle}: wait for it or choose another name."
            ) from None
        if _is_open_as(descriptor, partial):
            return descriptor
        os.close(descriptor)  # it was renamed or removed between opening and locking


def _is_open_as(descriptor: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _previous(bundle: Path) -> Path:
    """Where a bundle that is being replaced is for a moment."""
    return bundle.parent / f".{bundle.name}.previous"


def _settle_previous(bundle: Path) -> None:
    """Undo or finish the replacement in which another run was killed."""
    previous = _previous(bundle)
    if previous.exists() and not bundle.exists():
        previous.rename(bundle)
    _remove(previous)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
