"""Opening bundles: every kind of damage is one sentence, before any engine is opened."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import Manifest, file_info, open_bundle
from serving.errors import UserError


def rank(number: int) -> dict[str, Any]:
    """One of the two engines of a tensor-parallel one."""
    limits = {"file": "model.onnx", "weight_bytes": 40, "runtime_version": "11", "ranks": 2}
    return {"target": "tensorrt", "rank": number} | limits


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "model.onnx").write_bytes(b"graph")
    (path / "model.onnx.data").write_bytes(bytes(range(256)) * 20)
    write_manifest(path)
    return path


def manifest(path: Path) -> dict[str, Any]:
    files = ("model.onnx", "model.onnx.data")
    return {
        "format_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "built_with": {"export-llm": "0.1.0"},
        "model": {"name": "m", "architecture": "llama", "parameters": 10, "weight_bytes": 40},
        "graph": {
            "contract_version": 1,
            "vocab_size": 16,
            "dtype": "float32",
            "layers": [{"kv_heads": 1, "key_dim": 4, "value_dim": 4, "window": None}],
            "max_length": 64,
        },
        "engines": [
            {
                "target": "onnxruntime",
                "file": "model.onnx",
                "weight_bytes": 40,
                "max_batch": None,
                "max_sequence": None,
                "runtime_version": "1.32.0",
                "compute_capabilities": [],
            }
        ],
        "tokens": {"bos": None, "eos": [2], "pad": None},
        "parity": {"status": "passed"},
        "files": {name: file_info(path / name).model_dump() for name in files},
    }


def write_manifest(path: Path, **changes: Any) -> None:
    (path / "bundle.json").write_text(json.dumps(manifest(path) | changes))


def refusal(path: Path, *, verify: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        open_bundle(path, verify)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_sound_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.engine("onnxruntime") is not None
    assert opened.engine("tensorrt") is None
    assert opened.file("model.onnx") == bundle / "model.onnx"
    assert opened.file("tokenizer.json") is None
    assert opened.manifest.graph.kv_bytes_per_token == 32


def test_the_ranks_of_an_engine(bundle: Path) -> None:
    write_manifest(bundle, engines=[rank(0), rank(1)])
    opened = open_bundle(bundle)
    assert [(engine.rank, engine.ranks) for engine in opened.manifest.engines] == [(0, 2), (1, 2)]
    assert opened.engine("tensorrt") == opened.manifest.engines[0]


def test_a_manifest_survives_writing_and_reading(bundle: Path) -> None:
    first = open_bundle(bundle).manifest
    assert Manifest.model_validate_json(first.model_dump_json()) == first


def test_not_a_bundle(bundle: Path, tmp_path: Path) -> None:
    assert "no bundle directory" in refusal(tmp_path / "absent")
    assert "no bundle directory" in refusal(bundle / "model.onnx")
    assert "has no bundle.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\xff\xfe"])
def test_unreadable_json(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_bytes(text.encode("latin-1"))
    assert "can't be read" in refusal(bundle)


def test_newer_version_whatever_else_is_in_it(bundle: Path) -> None:
    (bundle / "bundle.json").write_text('{"format_version": 2, "of_the_future": []}')
    text = refusal(bundle)
    assert "made by a newer export-llm" in text
    assert "upgrade or export again" in text


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"format_version": 0}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"parity": {}}, "parity has no status"),
        ({"engines": [{"target": "other"}]}, "engines.0.target"),
        ({"files": {}}, "not listed under files"),
        ({"engines": [rank(0), rank(0)]}, "the ranks of the engine for tensorrt are not complete"),
        ({"engines": [rank(0), rank(1) | {"ranks": 3}]}, "are not complete"),
    ],
)
def test_invalid_manifest_names_the_field(
    bundle: Path, changes: dict[str, Any], where: str
) -> None:
    write_manifest(bundle, **changes)
    text = refusal(bundle)
    assert "not a valid manifest" in text
    assert where in text


def test_a_list_is_not_a_manifest(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("[]")
    assert "not a valid manifest" in refusal(bundle)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", ""])
def test_files_outside_the_bundle_are_refused(bundle: Path, name: str) -> None:
    files = manifest(bundle)["files"]
    write_manifest(bundle, files=files | {name: files["model.onnx"]})
    assert "not the name of a file inside the bundle" in refusal(bundle)


def test_missing_file(bundle: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    assert "lacks its file 'model.onnx.data'" in refusal(bundle)


def test_truncated_file(bundle: Path) -> None:
    data = (bundle / "model.onnx.data").read_bytes()
    (bundle / "model.onnx.data").write_bytes(data[:-1])
    assert "has 5,119 bytes instead of 5,120" in refusal(bundle, verify=False)


def test_one_changed_byte(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    assert "checksum differs" in refusal(bundle)
    open_bundle(bundle, verify=False)


def test_a_file_that_cannot_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("serving.bundle.file_info", fail)
    assert "can't be read (Permission denied)" in refusal(bundle)


def test_a_moved_bundle_opens(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(bundle, moved)
    open_bundle(str(moved))


def stages(*first_layers: int) -> list[dict[str, Any]]:
    return [
        {"file": "model.onnx", "first_layer": first, "layers": 1, "weight_bytes": 20}
        for first in first_layers
    ]


def staged(bundle: Path, *first_layers: int, **changes: Any) -> None:
    """Write a manifest of two layers whose engine has these stages of one layer."""
    document = manifest(bundle)
    document["graph"]["layers"] *= 2
    document["engines"][0]["stages"] = [stage | changes for stage in stages(*first_layers)]
    write_manifest(bundle, **document)


def test_stages_are_the_parts_of_an_engine(bundle: Path) -> None:
    staged(bundle, 0, 1)
    engine = open_bundle(bundle).manifest.engines[0]
    assert engine.parts == (("model.onnx", 20), ("model.onnx", 20))
    assert [stage.layer_range for stage in engine.stages] == ["layer 0", "layer 1"]


def test_a_manifest_from_before_there_were_stages_opens(bundle: Path) -> None:
    assert "stages" not in manifest(bundle)["engines"][0]
    engine = open_bundle(bundle).manifest.engines[0]
    assert engine.stages == ()
    assert engine.parts == (("model.onnx", 40),)


@pytest.mark.parametrize(
    ("first_layers", "changes", "message"),
    [
        ((0,), {}, "its stages have 1 layers, not 2"),
        ((0, 1, 2), {}, "its stages have 3 layers, not 2"),
        ((1, 0), {}, "doesn't begin with layer 0"),
        ((0, 0), {}, "doesn't begin with layer 1"),
        ((0, 1), {"file": "stage-9/model.onnx"}, "'stage-9/model.onnx' is not listed"),
        ((0, 1), {"file": "../model.onnx"}, "not the name of a file inside"),
    ],
)
def test_stages_that_are_not_the_whole_are_refused(
    bundle: Path, first_layers: tuple[int, ...], changes: dict[str, str], message: str
) -> None:
    staged(bundle, *first_layers, **changes)
    with pytest.raises(UserError, match=message):
        open_bundle(bundle)
