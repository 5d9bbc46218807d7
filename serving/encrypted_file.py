"""One encrypted file: AES-256-GCM in chunks, so that it is checked and read a little at a time.

A file is a random prefix of eight bytes, then its chunks, each with its tag. This is the STREAM
construction (Hoang, Reyhanitabar, Rogaway and Vizar, "Online authenticated-encryption and its
nonce-reuse misuse-resistance", 2015): a chunk's nonce is the prefix and the chunk's number. The
associated data are the file's name, the number and whether it is the last chunk. So a chunk that
was changed, moved, left out, or taken from another file doesn't authenticate. The caller uses one
key for few files, so that prefixes don't repeat.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serving.bundle_key import NONCE_BYTES, TAG_BYTES

CHUNK_BYTES = 1 << 20
PREFIX_BYTES = 8
_COUNTER_BYTES = NONCE_BYTES - PREFIX_BYTES


class NotAuthenticError(Exception):
    """A file that isn't, to the last byte, what was encrypted with this key under this name."""


def encrypted_size(size: int) -> int:
    """Bytes that a file of ``size`` bytes has when it is encrypted."""
    chunks = max(1, -(-size // CHUNK_BYTES))  # an empty file has one chunk, which is empty
    return PREFIX_BYTES + size + chunks * TAG_BYTES


def encrypt(source: BinaryIO, target: BinaryIO, name: str, cipher: AESGCM) -> None:
    """Write all of ``source`` encrypted into ``target``."""
    prefix = os.urandom(PREFIX_BYTES)
    target.write(prefix)
    for number, chunk, is_last in _chunks(source, CHUNK_BYTES):
        nonce = prefix + number.to_bytes(_COUNTER_BYTES, "big")
        target.write(cipher.encrypt(nonce, chunk, _associated(name, number, is_last)))


def decrypt(source: BinaryIO, target: BinaryIO, name: str, cipher: AESGCM) -> None:
    """Write what ``source`` was into ``target``.

    Every chunk is authenticated before it is written. Raises NotAuthenticError at the first that
    isn't: what was written until then is for the caller to throw away.
    """
    prefix = source.read(PREFIX_BYTES)
    for number, chunk, is_last in _chunks(source, CHUNK_BYTES + TAG_BYTES):
        nonce = prefix + number.to_bytes(_COUNTER_BYTES, "big")
        try:
            target.write(cipher.decrypt(nonce, chunk, _associated(name, number, is_last)))
        except (InvalidTag, ValueError) as error:  # a nonce or a chunk that is too short
            raise NotAuthenticError(name) from error


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Number, bytes and whether it is the last, of each chunk; there is at least one."""
    number, chunk = 0, source.read(size)
    while following := source.read(size):
        yield number, chunk, False
        number, chunk = number + 1, following
    yield number, chunk, True


def _associated(name: str, number: int, is_last: bool) -> bytes:
    # No name has a zero byte, so that no two of these are equal.
    counter = number.to_bytes(_COUNTER_BYTES, "big")
    return b"export-llm file 1\0" + name.encode() + b"\0" + counter + bytes([is_last])
