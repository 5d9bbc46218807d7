"""Signed and encrypted packages: what a device with keys takes, and what it refuses."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge.conftest import Device, Packed, make_key
from tests.edge.test_deploy import deployed, tampered

pytestmark = pytest.mark.xdist_group("edge")

PLAIN, SIGNED = "1.0", "2.0"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("keys")

    def key(name: str) -> Path:
        path = folder / name
        return path if path.exists() else make_key(path)

    return key


def trust(device: Device, key: Path) -> None:
    """The device takes packages that are signed with ``key`` only."""
    (device.root / "keys").mkdir(parents=True)
    public = key.with_suffix(".pub").read_text()
    (device.root / "keys/allowed_signers").write_text(
        f'release@example.com namespaces="export-llm" {public}'
    )


def test_a_device_with_a_public_key_takes_what_it_signed(
    device: Device, packed: Packed, keys: Callable[[str], Path]
) -> None:
    trust(device, keys("ours"))
    deployed(device, "deploy", packed(SIGNED, "--sign", keys("ours")))
    assert device.served() == f"{SIGNED}\n"
    # Without the public key a signature is no hindrance.
    shutil.rmtree(device.root / "keys")
    deployed(device, "update", packed("3.0", "--sign", keys("theirs")))
    assert device.served() == "3.0\n"


def refused(device: Device, package: Path, message: str) -> None:
    done = device.run("deploy", package)
    assert done.exit_code == 1
    assert message in done.stderr
    assert device.served() == f"{SIGNED}\n"
    assert not list((device.root / "incoming").iterdir())


def test_bad_and_missing_signatures_are_refused(
    device: Device, packed: Packed, keys: Callable[[str], Path], tmp_path: Path
) -> None:
    trust(device, keys("ours"))
    signed = packed(SIGNED, "--sign", keys("ours"))
    deployed(device, "deploy", signed)
    refused(device, packed("3.0"), "The package isn't signed")
    refused(device, packed("3.0", "--sign", keys("theirs")), "signature is not of a key in")
    new = packed("4.0", "--sign", keys("ours"))
    # A valid signature of something else: another package's, or of another purpose.
    refused(device, with_signature(new, signature_of(signed), tmp_path), "signature is not of")
    other = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", keys("ours")],
        input=member(new, "SHA256SUMS"),
        capture_output=True,
        check=True,
    ).stdout
    refused(device, with_signature(new, other, tmp_path), "signature is not of")
    # The checksums are what is signed, and all files are among them.
    wrong = tampered(new, "bin/llm-serve", tmp_path / "tampered.tar")
    refused(device, wrong, "bin/llm-serve isn't what the package says")


def member(package: Path, name: str) -> bytes:
    with tarfile.open(package) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def signature_of(package: Path) -> bytes:
    return member(package, "SHA256SUMS.sig")


def with_signature(package: Path, signature: bytes, folder: Path) -> Path:
    """A copy of a package with another signature."""
    path = folder / "resigned.tar"
    with tarfile.open(package) as source, tarfile.open(path, "w") as target:
        for each in source:
            content = source.extractfile(each)
            if each.name == "SHA256SUMS.sig":
                content = io.BytesIO(signature)
                each.size = len(signature)
            target.addfile(each, content)
    return path


needs_age = pytest.mark.skipif(shutil.which("age") is None, reason="no age (Debian: age)")


@pytest.fixture
def recipient(tmp_path: Path) -> str:
    """The public part of ``tmp_path/identity``."""
    identity = tmp_path / "identity"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    done = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True)
    return done.stdout.decode().strip()


@needs_age
@pytest.mark.parametrize("with_rsync", [True, False])
def test_encrypted_packages(
    device: Device,
    packed: Packed,
    bundle: Path,
    recipient: str,
    tmp_path: Path,
    keys: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    with_rsync: bool,
) -> None:
    if not with_rsync:
        monkeypatch.setattr("scripts.edge.delivery.shutil.which", lambda _: None)
    package = packed(SIGNED, "--encrypt", recipient, "--sign", keys("ours"))
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert [name for name in names if name.startswith("bundle/")] == [
        "bundle/bundle.json.age",
        "bundle/chat_template.jinja.age",
        "bundle/model.onnx.age",
        "bundle/tokenizer.json.age",
    ]
    for file in bundle.iterdir():
        assert file.read_bytes() not in package.read_bytes()

    failed = device.run("deploy", package)
    assert "can't be decrypted with" in failed.stderr
    trust(device, keys("ours"))
    shutil.copy(tmp_path / "identity", device.root / "keys/age-identity")
    first = deployed(device, "deploy", package)
    assert device.served() == f"{SIGNED}\n"
    assert (device.root / "current/bundle/model.onnx").read_bytes() == (
        bundle / "model.onnx"
    ).read_bytes()
    assert not list(device.root.rglob("*.age"))

    new = packed("5.0", "--encrypt", recipient, "--sign", keys("ours"))
    wrong = tampered(new, "bundle/model.onnx.age", tmp_path / "tampered.tar")
    refused(device, wrong, "bundle/model.onnx.age can't be decrypted")
    # Checksums are of what is encrypted: the same weights don't travel again.
    second = deployed(device, "update", new)
    assert second["sent"] < first["sent"]
    assert (device.root / "current/bundle/model.onnx").samefile(
        device.root / "previous/bundle/model.onnx"
    )
