"""API keys: a file with their hashes, what each may do, and who a request comes from.

A key is 256 random bits, so that nobody finds one by trying; then one SHA-256 hides it. Slow hashes
(scrypt, Argon2) make guessing dear where passwords are guessable. Here they would only cost every
request time.
"""

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from serving.errors import UserError
from serving.private_files import changing, read_private, write_private

PREFIX = "ellm-"
VARIABLE = "EXPORT_LLM_API_KEY"
ENVIRONMENT_KEY = "environment"
"""Name of the key that comes from the environment."""

Scope = Literal["generate", "embed", "classify", "metrics"]
SCOPES: tuple[Scope, ...] = ("generate", "embed", "classify", "metrics")

_LEAST_CHARACTERS = 32
_log = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyLimits(_Record):
    """What may be asked for with one key; None is no limit of its own."""

    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    concurrent_requests: PositiveInt | None = None
    tokens_per_request: PositiveInt | None = None


class Key(_Record):
    """One key, without its secret.

    ``scopes`` are "generate" (completions and chat), "embed" (embeddings), "classify" (what
    encoders do but embeddings) and "metrics".
    ``models`` are the names that it may use (None: all).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None = None
    limits: KeyLimits = KeyLimits()
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def allows(self, scope: Scope, model: str | None = None) -> bool:
        """Whether requests of that kind, to that model, may be made with it."""
        may_use = model is None or self.models is None or model in self.models
        return scope in self.scopes and may_use


class _KeyFile(_Record):
    format_version: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _has_each_once(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one name")
        return self


class KeyStore:
    """The keys of a file, read again whenever the file changes, and the environment's."""

    def __init__(self, path: Path | None, environment_key: Key | None) -> None:
        self._path = path
        self._environment_keys = () if environment_key is None else (environment_key,)
        self._file_keys: tuple[Key, ...] = ()
        self._seen: tuple[int, ...] | None = None
        if path is not None:
            self._seen, self._file_keys = _identity(path), read_keys(path)

    @classmethod
    def open(
        cls, path: str | Path | None, environment: Mapping[str, str] = os.environ
    ) -> "KeyStore":
        """Read a key file, if there is one, and EXPORT_LLM_API_KEY.

        Raises UserError if the file can't be read, is malformed or is open to others than its
        owner, or the environment's key is too short.
        """
        return cls(None if path is None else Path(path), _environment_key(environment))

    @property
    def is_open(self) -> bool:
        """Whether requests need no key, because there never was one.

        A file whose keys are all revoked, or that can't be read any more, opens nothing.
        """
        return self._path is None and not self._environment_keys

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys as they are now, invalid ones too."""
        self._reload()
        return self._environment_keys + self._file_keys

    def authenticate(self, secret: str) -> Key | None:
        """The valid key with that secret, or None."""
        digest = hash_secret(secret)
        found = None
        for key in self.keys:  # all of them: the time tells nothing about which
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found if found is not None and found.is_valid(datetime.now(UTC)) else None

    def _reload(self) -> None:
        """Read the file again if it changed; of a file that can't be read no key is valid.

        Keeping the keys from before would keep one that was just revoked.
        """
        if self._path is None:
            return
        identity = _identity(self._path)
        if identity == self._seen:
            return
        self._seen = identity
        try:
            self._file_keys = read_keys(self._path)
        except UserError:
            self._file_keys = ()
            _log.exception("The key file can't be read: no key in it is valid until it can.")


def hash_secret(secret: str) -> str:
    """SHA-256 of a key as it is stored, in hexadecimal."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises UserError if it is malformed or open to others."""
    try:
        return _KeyFile.model_validate_json(read_private(path)).keys
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise UserError(
            f"{str(path)!r} is no key file ({where}: {first['msg']}): make one with "
            "serve-llm keys create."
        ) from error


def create_key(
    path: Path,
    name: str,
    scopes: tuple[Scope, ...],
    *,
    models: tuple[str, ...] | None = None,
    limits: KeyLimits | None = None,
    expires: datetime | None = None,
) -> str:
    """Add a key to a file, which is made if there is none, and return its secret.

    The secret is nowhere else. Raises UserError for a name that is taken or malformed, or a file
    that can't be used.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(
            name=name,
            sha256=hash_secret(secret),
            scopes=scopes,
            models=models,
            limits=limits or KeyLimits(),
            created=datetime.now(UTC),
            expires=expires,
        )
    except ValidationError as error:
        raise UserError(
            f"{name!r} can't be the name of a key: take up to 64 letters, digits and . _ @ -, the "
            "first a letter or a digit."
        ) from error
    with changing(path):
        keys = read_keys(path) if path.exists() else ()
        if any(other.name == name for other in keys) or name == ENVIRONMENT_KEY:
            raise UserError(f"There is a key {name!r} already: choose another name.")
        _write_keys(path, (*keys, key))
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Make a key invalid for good; it stays listed. Raises UserError if there is none."""
    with changing(path):
        keys = read_keys(path)
        if all(key.name != name for key in keys):
            raise UserError(f"{str(path)!r} has no key {name!r}: see serve-llm keys list.")
        _write_keys(path, tuple(_revoked(key) if key.name == name else key for key in keys))


def _revoked(key: Key) -> Key:
    return key.model_copy(update={"revoked": key.revoked or datetime.now(UTC)})


def _write_keys(path: Path, keys: tuple[Key, ...]) -> None:
    document = _KeyFile(keys=keys).model_dump_json(indent=2, exclude_none=True)
    write_private(path, document.encode() + b"\n")


def _environment_key(environment: Mapping[str, str]) -> Key | None:
    secret = environment.get(VARIABLE)
    if not secret:
        return None
    if len(secret) < _LEAST_CHARACTERS:
        raise UserError(
            f"The key in {VARIABLE} has fewer than {_LEAST_CHARACTERS} characters, so that it "
            "could be guessed: make one with openssl rand -hex 32."
        )
    return Key(
        name=ENVIRONMENT_KEY,
        sha256=hash_secret(secret),
        scopes=SCOPES,
        created=datetime.now(UTC),
    )


def _identity(path: Path) -> tuple[int, ...] | None:
    """What differs when a file is another one or was changed; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
