"""The key of an encrypted bundle, from a file or the environment, and the data key that it wraps.

Each bundle is encrypted with a random key of its own, the data key, which the user's key encrypts.
The user's key has 256 bits from a random generator. There is no passphrase: one that a person can
remember would be the weakest part of this.
"""

import base64
import binascii
import os
import re
from pathlib import Path

from serving.errors import UserError
from serving.private_files import read_private

KEY_VARIABLE = "EXPORT_LLM_BUNDLE_KEY"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16

_HEX = re.compile(r"[0-9a-fA-F]{64}")


def read_key(key_file: Path | None, purpose: str) -> bytes:
    """The 32 bytes of the key from ``key_file``, or else from the environment.

    ``purpose`` begins the sentence for when there is none: "The bundle X is encrypted". Raises
    UserError where there is no key, it is malformed, or others than its owner may read the file.
    """
    if key_file is not None:
        return _decode(read_private(key_file), repr(str(key_file)))
    value = os.environ.get(KEY_VARIABLE)
    if not value:
        raise UserError(f"{purpose}: give its key with --key-file or in {KEY_VARIABLE}.")
    return _decode(value.encode(errors="replace"), KEY_VARIABLE)


def wrap(data_key: bytes, user_key: bytes, associated: bytes) -> bytes:
    """Encrypt a data key, bound to ``associated``: nonce, ciphertext and tag."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(user_key).encrypt(nonce, data_key, associated)


def unwrap(wrapped: bytes, user_key: bytes, associated: bytes) -> bytes | None:
    """The data key; None if the user's key is another one or something was changed."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(user_key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], associated)
    except InvalidTag:
        return None


def _decode(content: bytes, source: str) -> bytes:
    """32 bytes as 64 hexadecimal digits or in base64; line ends around them don't count."""
    text = content.decode("ascii", errors="replace").strip()
    try:
        key = bytes.fromhex(text) if _HEX.fullmatch(text) else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(
            f"{source} has no key of {KEY_BYTES} bytes in hexadecimal or base64: make one with "
            "openssl rand -hex 32."
        )
    return key
