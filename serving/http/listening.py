"""Where ``serve-llm http`` may listen, and with which certificate: checked before it starts."""

import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from serving.errors import UserError
from serving.http.connection_timeouts import timed_protocol
from serving.http.keys import Key
from serving.http.request_limits import RequestLimits


@dataclass(frozen=True)
class Certificate:
    """A server's certificate chain and its private key, both in PEM files."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class Listening:
    """An address that was checked."""

    host: str
    port: int
    certificate: Certificate | None

    @property
    def url(self) -> str:
        """The base address for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"

    def uvicorn_options(self, limits: RequestLimits) -> dict[str, Any]:
        """Parameters of uvicorn.Config.

        uvicorn makes no logs of its own (serving/http/logs.py): they have each request's whole
        target, query included.
        """
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "http": timed_protocol(limits.header_seconds, limits.stalled_seconds),
            "h11_max_incomplete_event_size": limits.header_bytes,
            "ws": "none",
            "access_log": False,
            "log_config": None,
            "server_header": False,
        }
        if self.certificate is not None:
            options |= {
                "ssl_certfile": self.certificate.chain,
                "ssl_keyfile": self.certificate.key,
                "ssl_context_factory": _context,
            }
        return options


def check_listening(
    host: str,
    port: int,
    *,
    keys: Sequence[Key],
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    insecure_http: bool = False,
) -> Listening:
    """Decide whether a server may listen there.

    On loopback it always may. On other addresses it needs a valid key, and TLS unless
    ``insecure_http``. Raises UserError where it may not, or the certificate can't be used.
    """
    certificate = _certificate(tls_cert, tls_key)
    if not _is_loopback(host):
        now = datetime.now(UTC)
        if not any(key.is_valid(now) for key in keys):
            raise UserError(
                f"Others could use the server on {host}, and it has no valid API key: make one "
                "with serve-llm keys create and pass its file, or listen on 127.0.0.1."
            )
        if certificate is None and not insecure_http:
            raise UserError(
                f"Keys and prompts would be sent to {host} unencrypted: pass --tls-cert and "
                "--tls-key, or --insecure-http if a proxy in front of the server has TLS."
            )
    return Listening(host, port, certificate)


def _is_loopback(host: str) -> bool:
    """Whether all addresses of a host are this machine's own. Raises UserError if it has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{host!r} is no address of this machine: check --host.") from error
    addresses = {str(address[0]).partition("%")[0] for *_, address in found}
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """Check that the certificate is valid now and that the key belongs to it."""
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise UserError("TLS needs both --tls-cert and --tls-key: pass the other one too.")
    certificate = _read_certificate(chain)
    if _encoded(certificate.public_key()) != _encoded(_read_public_key(key)):
        raise UserError(
            f"The key {str(key)!r} doesn't belong to the certificate {str(chain)!r}, whose first "
            "certificate must be the server's own: pass the two files that were made together."
        )
    now = datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise UserError(
            f"The certificate {str(chain)!r} is valid from {begin:%Y-%m-%d %H:%M} to "
            f"{end:%Y-%m-%d %H:%M} UTC only: renew it, or set this machine's clock."
        )
    return Certificate(chain, key)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(_read(path))[0]
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} has no certificate in PEM format: pass the file with the chain."
        ) from error


def _read_public_key(path: Path) -> PublicKeyTypes:
    """The public half of a private key."""
    try:
        return load_pem_private_key(_read(path), password=None).public_key()
    except TypeError as error:
        raise UserError(
            f"The key {str(path)!r} is protected by a passphrase: pass one without, which only the "
            "server's user may read."
        ) from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} has no private key in PEM format: pass the key.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{str(path)!r} can't be read ({error.strerror}): check the path and its permissions."
        ) from error


def _encoded(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _context(_config: object, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """uvicorn's context, which refuses what is older than TLS 1.2 whatever OpenSSL's settings."""
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
