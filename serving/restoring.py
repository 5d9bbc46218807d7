"""Putting the weights back into a bundle whose engines were stripped of them."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.bundle import MANIFEST, EngineInfo, file_info, is_encrypted, open_bundle
from serving.errors import UserError
from serving.stripped_engine import SUFFIX, restore


def restore_bundle(
    bundle: str | Path, checkpoint: str | Path, *, verify: bool = True
) -> list[Path]:
    """Make a bundle's stripped engines whole with a checkpoint's directory; return their files.

    The bundle is then what it would have been without stripping. One that is whole already stays as
    it is, and so does one for which this fails. ``verify`` compares the files' checksums first;
    what is restored is compared in any case. Raises UserError if the bundle is damaged or can't be
    written, or the checkpoint isn't the one that it was made from.
    """
    directory = Path(bundle)
    if is_encrypted(directory):
        raise UserError(
            f"{str(directory)!r} is encrypted: restore the bundle in clear and encrypt it then."
        )
    opened = open_bundle(directory, verify)
    if not any(engine.stripped_from for engine in opened.manifest.engines):
        return []
    with _reserved(directory):
        opened = open_bundle(directory, verify=False)  # by now another process may have done it
        stripped = [engine for engine in opened.manifest.engines if engine.stripped_from]
        return [_restore_engine(directory, engine, Path(checkpoint)) for engine in stripped]


def _restore_engine(directory: Path, engine: EngineInfo, checkpoint: Path) -> Path:
    whole = directory / engine.file.removesuffix(SUFFIX)
    expected = engine.stripped_from
    assert expected is not None
    partial = directory / f".{whole.name}.partial"
    try:
        restore(directory / engine.file, checkpoint, partial)
        if file_info(partial) != expected:
            raise UserError(
                f"{str(checkpoint)!r} has other weights than the checkpoint that {engine.file!r} "
                "was made from: give the one that was exported."
            )
        partial.rename(whole)
        _record(directory, engine, whole.name)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"The disk of {str(directory)!r} is full: make room for "
                f"{expected.size / 1e6:,.0f} MB."
            ) from error
        raise UserError(
            f"{str(error.filename or whole)!r} can't be used ({error.strerror}): check its "
            "permissions and its disk."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return whole


def _record(directory: Path, engine: EngineInfo, whole: str) -> None:
    """Let the manifest name the whole engine in place of the stripped one, which is removed."""
    manifest = open_bundle(directory, verify=False).manifest
    assert engine.stripped_from is not None
    files = {name: info for name, info in manifest.files.items() if name != engine.file}
    restored = engine.model_copy(update={"file": whole, "stripped_from": None})
    changed = manifest.model_copy(
        update={
            "engines": tuple(restored if e == engine else e for e in manifest.engines),
            "files": files | {whole: engine.stripped_from},
        }
    )
    partial = directory / f".{MANIFEST}.partial"
    try:
        partial.write_text(changed.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.rename(directory / MANIFEST)
    finally:
        partial.unlink(missing_ok=True)
    (directory / engine.file).unlink()


@contextmanager
def _reserved(directory: Path) -> Iterator[None]:
    """Keep other processes from restoring the same bundle; the lock ends with this one."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process restores {str(directory)!r}: wait for it.") from None
        yield
    finally:
        os.close(descriptor)
