"""Where a server may listen, and TLS handshakes with uvicorn as it is then configured."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serving.errors import UserError
from serving.http.keys import Key
from serving.http.listening import check_listening
from serving.http.request_limits import RequestLimits
from tests.serving.http.certificates import make_certificate
from tests.serving.http.live_server import serving_at

NOW = datetime.now(UTC)
KEY = Key(name="ci", sha256="0" * 64, scopes=("generate",), created=NOW)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert check_listening(host, 8000, keys=()).url.startswith("http://")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # the last is nobody's
@pytest.mark.parametrize(
    "key", [None, KEY.model_copy(update={"revoked": NOW}), KEY.model_copy(update={"expires": NOW})]
)
def test_other_addresses_need_a_valid_key(host: str, key: Key | None, tmp_path: Path) -> None:
    chain, private = make_certificate(tmp_path)
    with pytest.raises(UserError, match="has no valid API key: make one with serve-llm keys"):
        check_listening(host, 8000, keys=(key,) if key else (), tls_cert=chain, tls_key=private)


def test_other_addresses_need_tls_or_a_word(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unencrypted: pass --tls-cert"):
        check_listening("0.0.0.0", 8000, keys=(KEY,))
    insecure = check_listening("0.0.0.0", 8000, keys=(KEY,), insecure_http=True)
    assert insecure.url == "http://0.0.0.0:8000"
    chain, private = make_certificate(tmp_path)
    secure = check_listening("::", 8000, keys=(KEY,), tls_cert=chain, tls_key=private)
    assert secure.url == "https://[::]:8000"
    with pytest.raises(UserError, match="has no valid API key"):
        check_listening("0.0.0.0", 8000, keys=(), insecure_http=True)


@pytest.mark.parametrize("host", ["", "no such host", "x" * 300, "host.invalid"])
def test_refuses_what_is_no_address(host: str) -> None:
    with pytest.raises(UserError, match="is no address of this machine: check --host"):
        check_listening(host, 8000, keys=(KEY,), insecure_http=True)


def test_refuses_certificates_that_can_not_be_used(tmp_path: Path) -> None:
    chain, private = make_certificate(tmp_path)
    other_chain, other_key = make_certificate(tmp_path, "other")
    _, protected = make_certificate(tmp_path, "protected", password="secret")
    old, old_key = make_certificate(tmp_path, "old", begins=-9, ends=-1)
    early, early_key = make_certificate(tmp_path, "early", begins=1, ends=9)
    for tls_cert, tls_key, message in (
        (chain, None, "needs both --tls-cert and --tls-key"),
        (None, private, "needs both --tls-cert and --tls-key"),
        (tmp_path / "none", private, r"can't be read \(No such file"),
        (chain, tmp_path, r"can't be read \(Is a directory"),
        (private, private, "has no certificate in PEM format"),
        (chain, chain, "has no private key in PEM format"),
        (chain, other_key, "doesn't belong to the certificate"),
        (other_chain, private, "doesn't belong to the certificate"),
        (chain, protected, "is protected by a passphrase"),
        (old, old_key, "is valid from .* only: renew it"),
        (early, early_key, "is valid from .* only: renew it"),
    ):
        with pytest.raises(UserError, match=message):
            check_listening("127.0.0.1", 8000, keys=(), tls_cert=tls_cert, tls_key=tls_key)


async def _hello(_: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_of_1_2_or_newer(tmp_path: Path) -> None:
    chain, private = make_certificate(tmp_path)
    listening = check_listening("127.0.0.1", 0, keys=(), tls_cert=chain, tls_key=private)
    app = Starlette(routes=[Route("/", _hello)])
    with serving_at(app, listening.uvicorn_options(RequestLimits())) as port:
        url = f"https://127.0.0.1:{port}/"
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=str(chain))
            context.minimum_version = context.maximum_version = version
            answer = httpx.get(url, verify=context)
            assert answer.text == "hello"
            assert "server" not in answer.headers
        old = ssl.create_default_context(cafile=str(chain))
        old.set_ciphers("DEFAULT:@SECLEVEL=0")  # or this client would refuse by itself
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError, match=r"\[SSL: "):
            httpx.get(url, verify=old)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url.replace("https", "http"))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_an_old_client_is_refused_whatever_openssl_allows(tmp_path: Path) -> None:
    chain, private = make_certificate(tmp_path)
    listening = check_listening("127.0.0.1", 0, keys=(), tls_cert=chain, tls_key=private)
    factory = listening.uvicorn_options(RequestLimits())["ssl_context_factory"]
    lenient = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lenient.minimum_version = ssl.TLSVersion.TLSv1
    assert factory(None, lambda: lenient).minimum_version == ssl.TLSVersion.TLSv1_2
