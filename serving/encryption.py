"""Bundles that are encrypted at rest, and decrypted into memory when they are opened.

An encrypted bundle is a directory with ``encryption.json`` and, of each of the bundle's files, one
with ``.encrypted`` behind its name (serving/encrypted_file.py). ``encryption.json`` has the
bundle's own random key, encrypted with the user's (serving/bundle_key.py). The manifest,
``bundle.json``, is among the encrypted files: it says which others belong to the bundle.
"""

import errno
import io
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, ValidationError

from serving.bundle import (
    ENCRYPTION,
    MANIFEST,
    Bundle,
    is_encrypted,
    open_bundle,
    parse_manifest,
)
from serving.bundle_key import KEY_BYTES, KEY_VARIABLE, read_key, unwrap, wrap
from serving.errors import UserError
from serving.memory_files import MemoryDirectory

try:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from serving.encrypted_file import NotAuthenticError, decrypt, encrypt, encrypted_size
except ModuleNotFoundError as error:
    raise UserError(
        "Encrypted bundles need the Python package cryptography: install export-llm[http]."
    ) from error

SUFFIX = ".encrypted"
_REMEDY = "copy the bundle or encrypt it again."


class Encryption(BaseModel):
    """All of ``encryption.json``; ``wrapped_key`` is the data key, encrypted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encryption_version: Literal[1]
    cipher: Literal["AES-256-GCM"]
    wrapped_key: Base64Bytes


class EncryptedBundle(Bundle):
    """An encrypted bundle: its files are decrypted into memory when the first is asked for.

    They stay there as long as this object or what an engine has mapped of them.
    """

    def __init__(self, path: Path, cipher: AESGCM) -> None:
        self._cipher = cipher
        self._memory: MemoryDirectory | None = None
        self._manifest_bytes = io.BytesIO()
        with _opened(path, MANIFEST) as source:
            decrypt(source, self._manifest_bytes, MANIFEST, cipher)
        super().__init__(path, parse_manifest(path, self._manifest_bytes.getvalue()))

    def check_sizes(self) -> None:
        """Raise UserError unless every file is there and is as long as it should be."""
        for name, info in self.manifest.files.items():
            with _opened(self.path, name) as file:
                size = os.fstat(file.fileno()).st_size
            if size != encrypted_size(info.size):
                raise _damaged(self.path, name)

    def location(self, name: str) -> Path:
        """Where a file is, decrypted, in memory. Raises UserError if one is damaged."""
        return self.in_memory() / name

    def in_memory(self) -> Path:
        """The directory with all files, decrypted. Raises UserError likewise."""
        if self._memory is None:
            size = sum(info.size for info in self.manifest.files.values())
            memory = MemoryDirectory(size)
            close = weakref.finalize(self, memory.close)
            try:
                self.decrypt_into(memory.path)
            except BaseException:
                close()
                raise
            self._memory, self.bytes_in_memory = memory, size
        return self._memory.path

    def decrypt_into(self, directory: Path) -> None:
        """Write all files, decrypted, the manifest last; raises UserError if one is damaged."""
        for name in self.manifest.files:
            with _opened(self.path, name) as source, _new_file(directory / name) as target:
                decrypt(source, target, name, self._cipher)
        with _new_file(directory / MANIFEST) as target:
            target.write(self._manifest_bytes.getvalue())


def open_encrypted(directory: Path, verify: bool, key_file: Path | None) -> EncryptedBundle:
    """Open an encrypted bundle; see serving.bundle.open_bundle.

    With ``verify`` everything is decrypted, and so checked, now; without, when it is used.
    """
    bundle = EncryptedBundle(directory, _open_cipher(directory, key_file))
    bundle.check_sizes()
    if verify:
        bundle.in_memory()
    return bundle


def encrypt_bundle(bundle: str | Path, out: str | Path, key_file: Path | None) -> None:
    """Write an encrypted copy of a bundle, completely or not at all.

    Raises UserError if the bundle is damaged, ``out`` exists or can't be written, or there is no
    key.
    """
    source = Path(bundle)
    if is_encrypted(source):
        raise UserError(f"{str(source)!r} is encrypted already: decrypt it first for another key.")
    opened = open_bundle(source)
    user_key = read_key(key_file, "A bundle is encrypted with a key")
    data_key = AESGCM.generate_key(8 * KEY_BYTES)
    cipher = AESGCM(data_key)
    header = Encryption(encryption_version=1, cipher="AES-256-GCM", wrapped_key=b"")
    wrapped = wrap(data_key, user_key, _associated(header))
    with _new_directory(Path(out)) as partial:
        for name in (MANIFEST, *opened.manifest.files):
            with (
                (source / name).open("rb") as plain,
                _new_file(partial / f"{name}{SUFFIX}") as target,
            ):
                encrypt(plain, target, name, cipher)
        document = header.model_copy(update={"wrapped_key": wrapped}).model_dump_json(indent=2)
        with _new_file(partial / ENCRYPTION) as target:
            target.write(document.encode() + b"\n")


def decrypt_bundle(bundle: str | Path, out: str | Path, key_file: Path | None) -> None:
    """Write a copy of an encrypted bundle in clear, completely or not at all.

    Raises UserError if the bundle isn't encrypted or is damaged, ``out`` exists or can't be
    written, or the key is missing or wrong.
    """
    source = Path(bundle)
    if not is_encrypted(source):
        raise UserError(f"{str(source)!r} is no encrypted bundle, it has no {ENCRYPTION}.")
    opened = open_encrypted(source, verify=False, key_file=key_file)
    with _new_directory(Path(out)) as partial:
        opened.decrypt_into(partial)
        open_bundle(partial)


def _open_cipher(directory: Path, key_file: Path | None) -> AESGCM:
    """The cipher with the bundle's own key."""
    try:
        header = Encryption.model_validate_json((directory / ENCRYPTION).read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{str(directory / ENCRYPTION)!r} is damaged, or from a newer export-llm: upgrade, or "
            "copy the bundle again."
        ) from error
    user_key = read_key(key_file, f"The bundle {str(directory)!r} is encrypted")
    data_key = unwrap(header.wrapped_key, user_key, _associated(header))
    if data_key is None:
        source = repr(str(key_file)) if key_file else KEY_VARIABLE
        raise UserError(
            f"The key in {source} doesn't open the bundle {str(directory)!r}: give the key that it "
            f"was encrypted with, or copy the bundle again if {ENCRYPTION} was changed."
        )
    return AESGCM(data_key)


def _associated(header: Encryption) -> bytes:
    """What the wrapped key is bound to: everything else in encryption.json."""
    return header.model_dump_json(exclude={"wrapped_key"}).encode()


@contextmanager
def _opened(bundle: Path, name: str) -> Iterator[io.BufferedReader]:
    """Open one encrypted file; what is wrong with it becomes a sentence."""
    try:
        file = (bundle / f"{name}{SUFFIX}").open("rb")
    except FileNotFoundError as error:
        raise UserError(
            f"The encrypted bundle {str(bundle)!r} lacks its file '{name}{SUFFIX}': {_REMEDY}"
        ) from error
    except OSError as error:
        raise UserError(
            f"'{name}{SUFFIX}' in the encrypted bundle {str(bundle)!r} can't be read "
            f"({error.strerror}): check its permissions."
        ) from error
    with file:
        try:
            yield file
        except NotAuthenticError as error:
            raise _damaged(bundle, name) from error


def _damaged(bundle: Path, name: str) -> UserError:
    return UserError(
        f"'{name}{SUFFIX}' in the encrypted bundle {str(bundle)!r} was changed or cut off since it "
        f"was encrypted: {_REMEDY}"
    )


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Yield a sibling of ``out`` to write into, which takes its name at the end or is removed."""
    if out.exists():
        raise UserError(f"{str(out)!r} exists: choose another name.")
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        yield partial
        partial.rename(out)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(
            f"{str(out)!r} can't be written ({reason}): make room or choose another place."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _new_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file of a bundle for writing; at the end it is on its disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
