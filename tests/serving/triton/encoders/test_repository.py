"""Writing and checking encoders' models, without a server."""

import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.encryption import encrypt_bundle
from serving.errors import UserError
from serving.triton.repository import CONFIG, Deployment, write_version
from serving.triton.settings import EncoderSettings
from tests.serving.tiny_bundle import make_bundle
from tests.serving.triton.test_repository import edit, problems, remove, run

Encoders = Callable[[str], Path]


def test_the_command_writes_what_it_is_told(encoder: Encoders, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    options = ("--name", "e", "--copy", "--batch-tokens", 512, "--queue-delay", 0.002)
    more = ("--max-batch-size", 16, "--queue-limit", 50, "--queue-timeout", 1.5, "--instances", 2)
    code, output = run(encoder("windows") / "bundle", repository, *options, *more)
    assert (code, output) == (0, f"e: version 1 in {repository}\n")
    config = (repository / "e" / CONFIG).read_text()
    assert dict(re.findall(r'key: "(\w+)" value { string_value: "(.*)" }', config)) == {
        "batch_tokens": "512",
        "mask_token": "[MASK]",
    }
    numbers = dict(re.findall(r"(\w+): (\d+)", config))
    assert numbers["max_batch_size"] == "16"
    assert numbers["max_queue_delay_microseconds"] == "2000"
    assert numbers["max_queue_size"] == "50"
    assert numbers["default_timeout_microseconds"] == "1500000"
    assert numbers["count"] == "2"
    assert not (repository / "e" / "1" / "bundle").is_symlink()
    assert problems(repository) == {"e": []}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--slots", 2), "--slots is for models that generate text"),
        (("--ensemble",), "--ensemble is for models that generate text"),
        (("--provider", "cuda"), "--provider is for models that generate text"),
        (("--target", "tensorrt"), "no engine for tensorrt"),
        (("--threads", 0), "'threads' can't be used (Input should be greater than 0)"),
    ],
)
def test_options_that_cannot_be(
    encoder: Encoders, tmp_path: Path, options: tuple[object, ...], reason: str
) -> None:
    code, output = run(encoder("sentences") / "bundle", tmp_path / "models", *options)
    assert code == 1
    assert reason in output
    assert not (tmp_path / "models").exists()


def test_what_is_for_encoders_alone(encoder: Encoders, tmp_path: Path) -> None:
    decoder = make_bundle(tmp_path / "tiny")
    code, output = run(decoder, tmp_path / "models", "--queue-delay", 1)
    assert (code, "--queue-delay is for encoders" in output) == (1, True)
    write_version(Deployment(decoder, "tiny"), tmp_path / "models")
    with pytest.raises(UserError, match="is a single model that generates text, and this would be"):
        write_version(
            Deployment(encoder("sentences") / "bundle", "tiny", EncoderSettings()),
            tmp_path / "models",
        )


def test_an_encrypted_bundle(encoder: Encoders, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(secrets.token_hex(32))
    (tmp_path / "key").chmod(0o600)
    encrypt_bundle(encoder("sentences") / "bundle", tmp_path / "secret", tmp_path / "key")
    options = ("--key-file", tmp_path / "key")
    assert run(tmp_path / "secret", tmp_path / "models", *options)[0] == 0
    assert problems(tmp_path / "models") == {"secret": []}
    (tmp_path / "key").write_text(secrets.token_hex(32))
    (problem,) = problems(tmp_path / "models")["secret"]
    assert "key" in problem


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (edit("max_batch_size: 64", "max_batch_size: 0"), "max_batch_size: 1 or more"),
        (
            edit(
                "version_policy {", "model_transaction_policy { decoupled: true }\nversion_policy {"
            ),
            "decoupled: false",
        ),
        (edit("dims: [32]", "dims: [64]"), "the output 'embeddings' as TYPE_FP32 [32]"),
        (edit("TYPE_BOOL", "TYPE_INT32"), "the output 'truncated' as TYPE_BOOL"),
        (edit('"text"', '"texts"'), "the input 'text' as TYPE_STRING"),
        (
            edit(
                "version_policy {",
                'parameters { key: "slots" value { string_value: "1" } }\nversion_policy {',
            ),
            "parameter 'slots'",
        ),
        (remove("1/bundle"), "Version 1"),
    ],
)
def test_check_finds(
    encoder: Encoders, tmp_path: Path, breaks: Callable[[Path], None], problem: str
) -> None:
    deployment = Deployment(encoder("sentences") / "bundle", "tiny", EncoderSettings())
    write_version(deployment, tmp_path / "models")
    assert problems(tmp_path / "models") == {"tiny": []}
    breaks(tmp_path / "models" / "tiny")
    assert problem in " ".join(problems(tmp_path / "models")["tiny"])
