"""API keys: what the file holds, who may read it, and who a secret belongs to."""

import json
import os
import secrets
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from serving.cli import main
from serving.errors import UserError
from serving.http.keys import KeyLimits, KeyStore, create_key, read_keys, revoke_key

SECRET = secrets.token_hex(32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["keys", *map(str, arguments)])


def test_a_key_is_known_by_its_secret_alone(file: Path) -> None:
    first, second = (create_key(file, name, ("generate",)) for name in ("first", "second"))
    store = KeyStore.open(file, {})
    for secret, name in ((first, "first"), (second, "second")):
        key = store.authenticate(secret)
        assert key is not None
        assert key.name == name
    for wrong in ("", first[:-1], first + "x", first.swapcase(), "é" * 48, "\ud800", "first"):
        assert store.authenticate(wrong) is None
    hashes = [key.sha256 for key in read_keys(file)]
    assert [store.authenticate(sha256) for sha256 in hashes] == [None, None]


def test_the_file_has_no_secret_and_is_its_owner_s(file: Path) -> None:
    secret = create_key(file, "first", ("generate",))
    assert secret.startswith("ellm-")
    assert len(secret) == 48
    content = file.read_text()
    assert secret not in content
    assert secret.removeprefix("ellm-")[:16] not in content
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_refuses_a_file_that_others_may_read_or_write(file: Path, mode: int) -> None:
    create_key(file, "first", ("generate",))
    file.chmod(mode)
    with pytest.raises(UserError, match=r"others than its owner .*: run chmod 600"):
        KeyStore.open(file, {})


@pytest.mark.parametrize("content", ["", "[]", '{"keys": [{"name": "x"}]}', '{"more": 1}'])
def test_refuses_a_malformed_file(file: Path, content: str) -> None:
    file.touch(0o600)
    file.write_text(content)
    with pytest.raises(UserError, match=r"is no key file \(.*serve-llm keys create"):
        KeyStore.open(file, {})


def test_a_malformed_file_s_message_has_nothing_of_it(file: Path) -> None:
    file.touch(0o600)
    file.write_text(json.dumps({"keys": [{"name": SECRET + " ", "sha256": SECRET}]}))
    with pytest.raises(UserError) as caught:
        KeyStore.open(file, {})
    assert SECRET not in str(caught.value)


def test_refuses_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(UserError, match=r"can't be used \(No such file"):
        KeyStore.open(file, {})


def test_changes_are_seen_without_a_restart(file: Path) -> None:
    secret = create_key(file, "first", ("generate",))
    store = KeyStore.open(file, {})
    added = create_key(file, "second", ("embed",))
    assert store.authenticate(added) is not None
    revoke_key(file, "first")
    assert store.authenticate(secret) is None
    assert store.authenticate(added) is not None


@pytest.mark.parametrize("damage", ["removed", "readable", "malformed"])
def test_of_a_file_that_became_unusable_no_key_is_valid(file: Path, damage: str) -> None:
    secret = create_key(file, "first", ("generate",))
    store = KeyStore.open(file, {"EXPORT_LLM_API_KEY": SECRET})
    assert store.authenticate(secret) is not None
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    elif damage == "readable":
        file.chmod(0o644)
    else:
        file.write_text("{")
    assert store.authenticate(secret) is None
    assert store.authenticate(SECRET) is not None, "the environment's key isn't in the file"
    file.write_bytes(content)
    file.chmod(0o600)
    assert store.authenticate(secret) is not None


def test_a_key_expires(file: Path) -> None:
    now = datetime.now(UTC)
    late = create_key(file, "late", ("generate",), expires=now - timedelta(seconds=1))
    valid = create_key(file, "valid", ("generate",), expires=now + timedelta(hours=1))
    store = KeyStore.open(file, {})
    assert store.authenticate(late) is None
    assert store.authenticate(valid) is not None


def test_scopes_and_models(file: Path) -> None:
    create_key(file, "narrow", ("generate",), models=("small",))
    create_key(file, "wide", ("generate", "metrics"))
    narrow, wide = read_keys(file)
    assert narrow.allows("generate", "small")
    assert not narrow.allows("generate", "large")
    assert not narrow.allows("embed", "small")
    assert wide.allows("generate", "large")
    assert wide.allows("metrics")
    assert not wide.allows("embed")


def test_the_environment_s_key() -> None:
    store = KeyStore.open(None, {"EXPORT_LLM_API_KEY": SECRET})
    key = store.authenticate(SECRET)
    assert key is not None
    assert key.allows("metrics")
    assert store.authenticate(SECRET[:-1]) is None
    assert KeyStore.open(None, {}).keys == ()
    with pytest.raises(UserError, match=r"fewer than 32 characters.*openssl rand"):
        KeyStore.open(None, {"EXPORT_LLM_API_KEY": "hunter2"})


def test_keys_made_at_the_same_time_are_all_there(file: Path) -> None:
    threads = [
        threading.Thread(target=create_key, args=(file, f"key{number}", ("generate",)))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(file)) == 12


def test_the_commands(file: Path) -> None:
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "9000"]
    created = run("create", file, "ci", "--scope", "embed", "--model", "m", *limits)
    secret = created.stdout.strip()
    assert created.exit_code == 0
    key = KeyStore.open(file, {}).authenticate(secret)
    assert key is not None
    assert (key.scopes, key.models) == (("embed",), ("m",))
    assert key.limits == KeyLimits(requests_per_minute=60, tokens_per_minute=9000)

    assert "ci  valid  embed  m  requests_per_minute 60, tokens" in run("list", file).stdout
    (row,) = json.loads(run("list", file, "--json").stdout)
    assert row["state"] == "valid"
    assert not {"sha256", "key"} & row.keys()

    assert run("revoke", file, "ci").exit_code == 0
    assert KeyStore.open(file, {}).authenticate(secret) is None
    assert "revoked" in run("list", file).stdout


@pytest.mark.parametrize("name", ["ci", "environment", "", "a b", "-x", "x" * 65, "n\n"])
def test_refuses_names(file: Path, name: str) -> None:
    create_key(file, "ci", ("generate",))
    with pytest.raises(UserError, match=r"There is a key|can't be the name of a key"):
        create_key(file, name, ("generate",))
    with pytest.raises(UserError, match="has no key 'other'"):
        revoke_key(file, "other")


def test_what_can_t_be_written_stays_as_it_was(file: Path) -> None:
    create_key(file, "ci", ("generate",))
    before = file.read_bytes()
    if os.getuid() == 0:
        with pytest.raises(UserError, match="can't be used"):
            create_key(Path("/proc/keys.json"), "ci", ("generate",))
    else:
        file.parent.chmod(0o500)
        with pytest.raises(UserError, match="can't be used"):
            create_key(file, "second", ("generate",))
        file.parent.chmod(0o700)
    assert file.read_bytes() == before
