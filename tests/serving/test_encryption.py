"""Encrypted bundles: the same tokens as in clear, nothing readable on disk, and every tampering."""

import base64
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import serving
from serving import encrypted_file, encryption, memory_files
from serving.bundle import file_info, open_bundle
from serving.cli import main
from serving.errors import UserError
from serving.restoring import restore_bundle
from tests.serving.tiny_bundle import make_bundle

WEIGHTS = "model.onnx.data"
KEY = "EXPORT_LLM_BUNDLE_KEY"

# One worker runs them all: each looks at what is in memory meanwhile.
pytestmark = pytest.mark.xdist_group("encryption")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks in files of a few kB, and no key but the test's."""
    monkeypatch.setattr(encrypted_file, "CHUNK_BYTES", 512)
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A bundle whose weights are in a file of their own, as an exported one's are."""
    bundle = make_bundle(tmp_path / "plain")
    model = onnx.load(bundle / "model.onnx")
    onnx.save(model, bundle / "model.onnx", None, save_as_external_data=True, location=WEIGHTS)
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    (bundle / "empty.txt").touch()
    for name in ("model.onnx", WEIGHTS, "empty.txt"):
        manifest["files"][name] = file_info(bundle / name).model_dump()
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key", secrets.token_hex(32))


@pytest.fixture
def encrypted(plain: Path, tmp_path: Path, key_file: Path) -> Path:
    encryption.encrypt_bundle(plain, tmp_path / "encrypted", key_file)
    return tmp_path / "encrypted"


def write_key(path: Path, content: str) -> Path:
    path.write_text(content + "\n")
    path.chmod(0o600)
    return path


def text(bundle: Path, key_file: Path | None = None) -> str:
    with serving.load(bundle, key_file=key_file) as model:
        return model.generate("hello", max_new_tokens=12).text


def in_memory() -> set[Path]:
    return set(memory_files.ROOT.glob(f"export-llm-{os.getuid()}-*"))


def test_generates_what_the_bundle_in_clear_does(
    plain: Path, encrypted: Path, key_file: Path
) -> None:
    before = in_memory()
    with serving.load(encrypted, key_file=key_file) as model:
        assert not in_memory() - before, "files stayed readable after the engine was opened"
        assert model.generate("hello", max_new_tokens=12).text == text(plain)


@pytest.mark.parametrize("encode", [bytes.hex, lambda key: base64.b64encode(key).decode()])
def test_the_key_may_come_from_the_environment(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode: Callable[[bytes], str]
) -> None:
    monkeypatch.setenv(KEY, encode(secrets.token_bytes(32)))
    encryption.encrypt_bundle(plain, tmp_path / "out", None)
    assert text(tmp_path / "out") == text(plain)


def test_nothing_of_the_bundle_can_be_read(plain: Path, encrypted: Path) -> None:
    stored = b"".join(file.read_bytes() for file in encrypted.iterdir())
    weights = (plain / WEIGHTS).read_bytes()
    for secret in (b"embedding", b"TensorScatter", b"format_version", weights[:16], weights[-16:]):
        assert secret in b"".join(file.read_bytes() for file in plain.iterdir())
        assert secret not in stored


def test_equal_files_look_different(plain: Path, tmp_path: Path, key_file: Path) -> None:
    for name in ("a", "b"):
        encryption.encrypt_bundle(plain, tmp_path / name, key_file)
    first, second = ((tmp_path / n / f"{WEIGHTS}.encrypted").read_bytes() for n in "ab")
    assert first[:8] != second[:8]
    assert first[8:40] != second[8:40]


def test_the_commands_open_it(plain: Path, encrypted: Path, key_file: Path) -> None:
    runner = CliRunner()
    for command in (["generate", "hello", "--max-new-tokens", "4"], ["inspect", "--json"]):
        name, *rest = command
        arguments = [name, str(encrypted), *rest, "--key-file", str(key_file)]
        done = runner.invoke(main, arguments)
        assert done.exit_code == 0, done.output
        assert done.stdout == runner.invoke(main, [name, str(plain), *rest]).stdout


def test_decrypts_to_the_same_bytes(
    plain: Path, encrypted: Path, key_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["decrypt", str(encrypted), str(out), "--key-file", str(key_file)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in plain.iterdir()
    }


def weights_of(bundle: Path) -> Path:
    return bundle / f"{WEIGHTS}.encrypted"


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def swap_chunks(file: Path) -> None:
    content, size = file.read_bytes(), 512 + 16
    first, second = content[8 : 8 + size], content[8 + size : 8 + 2 * size]
    file.write_bytes(content[:8] + second + first + content[8 + 2 * size :])


def swap_files(bundle: Path) -> None:
    """A copy of a file under another one's name, with its length."""
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (bundle / f"{name}.encrypted").is_file()
    small, other = bundle / "chat_template.jinja.encrypted", bundle / "tokenizer.json.encrypted"
    small.write_bytes(other.read_bytes()[: small.stat().st_size])


def cut_last_chunk(file: Path) -> None:
    size = file.stat().st_size - 8
    file.write_bytes(file.read_bytes()[: 8 + (size - 1) // 528 * 528])


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "first byte": lambda bundle: flip(weights_of(bundle), 0),
    "a byte in the middle": lambda bundle: flip(weights_of(bundle), 700),
    "last byte": lambda bundle: flip(weights_of(bundle), -1),
    "chunks swapped": lambda bundle: swap_chunks(weights_of(bundle)),
    "cut at a chunk": lambda bundle: cut_last_chunk(weights_of(bundle)),
    "cut off": lambda bundle: os.truncate(weights_of(bundle), 100),
    "emptied": lambda bundle: os.truncate(weights_of(bundle), 0),
    "bytes added": lambda bundle: weights_of(bundle).write_bytes(
        weights_of(bundle).read_bytes() + b"x"
    ),
    "another file's start": swap_files,
    "manifest": lambda bundle: flip(bundle / "bundle.json.encrypted", 30),
    "manifest emptied": lambda bundle: os.truncate(bundle / "bundle.json.encrypted", 0),
    "manifest cut at a chunk": lambda bundle: cut_last_chunk(bundle / "bundle.json.encrypted"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
@pytest.mark.parametrize("verify", [True, False])
def test_refuses_what_was_changed(
    encrypted: Path, key_file: Path, tampering: str, verify: bool
) -> None:
    TAMPERINGS[tampering](encrypted)
    before = in_memory()
    with pytest.raises(UserError, match=r"was changed or cut off since it was encrypted: copy"):
        serving.load(encrypted, key_file=key_file, verify=verify)
    assert not in_memory() - before


def test_a_file_of_equal_length_is_refused_under_another_name(tmp_path: Path) -> None:
    cipher = encryption.AESGCM(bytes(32))
    with (tmp_path / "a").open("w+b") as plain, (tmp_path / "b").open("w+b") as target:
        plain.write(b"weights")
        plain.seek(0)
        encrypted_file.encrypt(plain, target, "one", cipher)
        target.seek(0)
        with pytest.raises(encrypted_file.NotAuthenticError):
            encrypted_file.decrypt(target, plain, "two", cipher)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_sizes_around_a_chunk(tmp_path: Path, size: int) -> None:
    cipher, content = encryption.AESGCM(bytes(32)), secrets.token_bytes(size)
    (tmp_path / "plain").write_bytes(content)
    with (tmp_path / "plain").open("rb") as plain, (tmp_path / "out").open("wb") as out:
        encrypted_file.encrypt(plain, out, "name", cipher)
    assert (tmp_path / "out").stat().st_size == encrypted_file.encrypted_size(size)
    with (tmp_path / "out").open("rb") as source, (tmp_path / "back").open("wb") as back:
        encrypted_file.decrypt(source, back, "name", cipher)
    assert (tmp_path / "back").read_bytes() == content


def test_refuses_the_wrong_key(encrypted: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other", secrets.token_hex(32))
    with pytest.raises(UserError, match=r"doesn't open the bundle .*: give the key that it was"):
        open_bundle(encrypted, key_file=other)


def test_refuses_a_changed_header(encrypted: Path, key_file: Path) -> None:
    header = json.loads((encrypted / "encryption.json").read_bytes())
    wrapped = bytearray(base64.b64decode(header["wrapped_key"]))
    wrapped[-1] ^= 1
    header["wrapped_key"] = base64.b64encode(wrapped).decode()
    (encrypted / "encryption.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="doesn't open the bundle"):
        open_bundle(encrypted, key_file=key_file)
    (encrypted / "encryption.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged, or from a newer export-llm"):
        open_bundle(encrypted, key_file=key_file)


def test_refuses_to_open_without_a_key(encrypted: Path) -> None:
    with pytest.raises(UserError, match=r"is encrypted: give its key with --key-file or in EXPORT"):
        serving.load(encrypted)


def test_refuses_a_missing_file(encrypted: Path, key_file: Path) -> None:
    weights_of(encrypted).unlink()
    with pytest.raises(UserError, match=r"lacks its file 'model.onnx.data.encrypted'"):
        open_bundle(encrypted, verify=False, key_file=key_file)


@pytest.mark.parametrize("content", ["", "correct horse battery staple", "ab" * 31, "clé"])
def test_refuses_what_is_no_key(encrypted: Path, tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="has no key of 32 bytes in hexadecimal or base64"):
        open_bundle(encrypted, key_file=write_key(tmp_path / "none", content))


def test_refuses_a_key_file_that_others_may_read(encrypted: Path, key_file: Path) -> None:
    key_file.chmod(0o640)
    with pytest.raises(UserError, match=r"others than its owner may read .*: run chmod 600"):
        open_bundle(encrypted, key_file=key_file)


@contextmanager
def most_bytes_of_a_file(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", ["encrypt", "decrypt"])
def test_leaves_nothing_when_it_fails(
    plain: Path, encrypted: Path, key_file: Path, tmp_path: Path, command: str
) -> None:
    source = plain if command == "encrypt" else encrypted
    before = set(tmp_path.iterdir())
    arguments = [command, str(source), str(tmp_path / "out"), "--key-file", str(key_file)]
    with most_bytes_of_a_file(1000):
        done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "out' can't be written (File too large): make room" in done.output
    assert set(tmp_path.iterdir()) == before


def test_refuses_to_replace_anything(
    plain: Path, encrypted: Path, key_file: Path, tmp_path: Path
) -> None:
    for call, source in (
        (encryption.encrypt_bundle, plain),
        (encryption.decrypt_bundle, encrypted),
    ):
        with pytest.raises(UserError, match="exists: choose another name"):
            call(source, tmp_path, key_file)
    with pytest.raises(UserError, match="is encrypted already"):
        encryption.encrypt_bundle(encrypted, tmp_path / "out", key_file)
    with pytest.raises(UserError, match="is no encrypted bundle"):
        encryption.decrypt_bundle(plain, tmp_path / "out", key_file)
    with pytest.raises(UserError, match="is encrypted: restore the bundle in clear"):
        restore_bundle(encrypted, tmp_path)


def test_a_killed_process_leaves_files_in_memory_until_the_next_one(
    encrypted: Path, key_file: Path
) -> None:
    script = (
        "import sys; from serving.bundle import open_bundle\n"
        "from serving import encrypted_file; encrypted_file.CHUNK_BYTES = 512\n"
        "bundle = open_bundle(sys.argv[1], key_file=sys.argv[2])\n"
        "print(bundle.in_memory(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(encrypted), str(key_file)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert left.stat().st_mode & 0o777 == 0o700
        open_bundle(encrypted, key_file=key_file)
        assert left.is_dir(), "another process's files were taken away"
        process.send_signal(signal.SIGKILL)
    assert left.is_dir()
    open_bundle(encrypted, key_file=key_file)
    assert not left.exists()


def test_decrypts_into_memory_only(
    encrypted: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_files, "ROOT", tmp_path)
    with pytest.raises(UserError, match="is no tmpfs here: mount one, or decrypt the bundle"):
        open_bundle(encrypted, key_file=key_file)


def test_refuses_more_than_memory_has(
    encrypted: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_files, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match="MB of memory and 0 MB are free"):
        open_bundle(encrypted, key_file=key_file)
    monkeypatch.undo()
    monkeypatch.setattr(encrypted_file, "CHUNK_BYTES", 512)
    usage = shutil.disk_usage(memory_files.ROOT)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="docker run --shm-size"):
        open_bundle(encrypted, key_file=key_file)
