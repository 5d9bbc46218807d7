"""Weights put back into a stripped bundle: exactly what was built, or a sentence and no change."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import serving
from serving.bundle import file_info, open_bundle
from serving.cli import main
from serving.errors import UserError
from serving.restoring import restore_bundle
from serving.stripped_engine import Recipe, write_stripped
from tests.serving.tiny_bundle import make_bundle

ENGINE = "model.tensorrt-rtx.engine"
STRIPPED = f"{ENGINE}.stripped"
ROWS, COLUMNS, CODE = 48, 64, 1000
NOISE = np.random.default_rng(0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of two matrices in float32."""
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = {name: NOISE.standard_normal((ROWS, COLUMNS), np.float32) for name in ("up", "down")}
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture
def engine(model: Path) -> bytes:
    """An engine with the first matrix as it is and both transposed, side by side."""
    tensors = load_file(model / "model.safetensors")
    up, down = (tensors[name].astype(np.float16) for name in ("up", "down"))
    side_by_side = np.concatenate([up.T, down.T], axis=1)
    return NOISE.bytes(CODE) + up.tobytes() + side_by_side.tobytes() + NOISE.bytes(10)


@pytest.fixture
def bundle(tmp_path: Path, engine: bytes) -> Path:
    """A bundle with that engine, stripped."""
    after = CODE + ROWS * COLUMNS * 2
    as_it_is = {"transposed": False, "rows": ROWS, "columns": COLUMNS, "stride": COLUMNS * 2}
    turned = {"transposed": True, "rows": COLUMNS, "columns": ROWS, "stride": 2 * ROWS * 2}
    blocks: list[dict[str, Any]] = [
        {"tensor": "up", "offset": CODE} | as_it_is,
        {"tensor": "up", "offset": after} | turned,
        {"tensor": "down", "offset": after + ROWS * 2} | turned,
    ]
    path = make_bundle(tmp_path / "bundle")
    (path / ENGINE).write_bytes(engine)
    whole = file_info(path / ENGINE)
    recipe = Recipe.model_validate(
        {
            "dtype": "float16",
            "size": len(engine),
            "blocks": [block | {"row": 0, "column": 0} for block in blocks],
        }
    )
    write_stripped(path / ENGINE, recipe, path / STRIPPED)
    (path / ENGINE).unlink()
    document = json.loads((path / "bundle.json").read_text())
    document["engines"] = [
        {
            "target": "tensorrt-rtx",
            "file": STRIPPED,
            "weight_bytes": 1,
            "runtime_version": "1.7",
            "stripped_from": whole.model_dump(),
        }
    ]
    document["files"][STRIPPED] = file_info(path / STRIPPED).model_dump()
    (path / "bundle.json").write_text(json.dumps(document))
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_restored_bundle_is_what_it_was_before(bundle: Path, model: Path, engine: bytes) -> None:
    assert (bundle / STRIPPED).stat().st_size < CODE + 1000
    assert restore_bundle(bundle, model) == [bundle / ENGINE]
    assert (bundle / ENGINE).read_bytes() == engine
    assert not [name for name in contents(bundle) if "stripped" in name or "partial" in name]
    restored = open_bundle(bundle).manifest
    assert [(e.file, e.stripped_from) for e in restored.engines] == [(ENGINE, None)]
    assert STRIPPED not in restored.files
    assert restore_bundle(bundle, model) == []


def changed(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["up"][ROWS - 1, COLUMNS - 1] *= 1.01
    save_file(tensors, model / "model.safetensors")


def renamed(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["other"] = tensors.pop("down")
    save_file(tensors, model / "model.safetensors")


def smaller(model: Path) -> None:
    tensors = {name: t[:-1] for name, t in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors")


def truncated(model: Path) -> None:
    os.truncate(model / "model.safetensors", 2000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed, "has other weights than the checkpoint"),
        (renamed, "lacks down, so it is not the checkpoint"),
        (smaller, "has a smaller "),
        (truncated, "is missing, truncated or damaged"),
        (shutil.rmtree, "has no safetensors files"),
    ],
)
def test_another_checkpoint_is_refused_and_nothing_changes(
    bundle: Path, model: Path, damage: Callable[[Path], None], message: str
) -> None:
    before = contents(bundle)
    damage(model)
    with pytest.raises(UserError, match=message):
        restore_bundle(bundle, model)
    assert contents(bundle) == before


def cut_off(data: bytes) -> bytes:
    return data[:-40]


def overwritten(data: bytes) -> bytes:
    return data[:200] + bytes(20) + data[220:]


@pytest.mark.parametrize("damage", [cut_off, overwritten])
def test_a_damaged_engine_is_refused_and_nothing_changes(
    bundle: Path, model: Path, damage: Callable[[bytes], bytes]
) -> None:
    (bundle / STRIPPED).write_bytes(damage((bundle / STRIPPED).read_bytes()))
    with pytest.raises(UserError, match=r"stripped' in the bundle .* (has changed|bytes)"):
        restore_bundle(bundle, model)
    document = json.loads((bundle / "bundle.json").read_text())
    document["files"][STRIPPED] = file_info(bundle / STRIPPED).model_dump()
    (bundle / "bundle.json").write_text(json.dumps(document))
    before = contents(bundle)
    with pytest.raises(UserError, match=r"stripped' is damaged: copy the bundle"):
        restore_bundle(bundle, model)
    assert contents(bundle) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(bundle: Path, model: Path) -> None:
    before = set(os.listdir(bundle))
    (bundle / f".{ENGINE}.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"The disk of .* is full: make room for 0 MB"):
        restore_bundle(bundle, model)
    assert set(os.listdir(bundle)) == before


def test_a_bundle_that_may_not_be_written_is_one_sentence(
    bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(bundle / ENGINE))

    monkeypatch.setattr("serving.restoring.restore", refuse)
    with pytest.raises(UserError, match=r"can't be used \(Read-only file system\)"):
        restore_bundle(bundle, model)


def test_a_bundle_that_another_process_restores_is_left_to_it(bundle: Path, model: Path) -> None:
    descriptor = os.open(bundle, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="Another process restores"):
        restore_bundle(bundle, model)
    os.close(descriptor)
    assert restore_bundle(bundle, model)


def test_what_a_killed_run_left_is_no_hindrance(bundle: Path, model: Path, engine: bytes) -> None:
    for name in (ENGINE, f".{ENGINE}.partial"):
        (bundle / name).write_bytes(b"half of an engine" * 10_000)
    restore_bundle(bundle, model)
    assert (bundle / ENGINE).read_bytes() == engine
    assert not (bundle / f".{ENGINE}.partial").exists()


def test_a_stripped_bundle_says_what_to_do_when_it_is_loaded(bundle: Path) -> None:
    with pytest.raises(UserError, match="comes without its weights: put them in with serve-llm re"):
        serving.load(bundle)


def test_the_command_restores_once(bundle: Path, model: Path) -> None:
    run = CliRunner().invoke
    shown = run(main, ["inspect", str(bundle)], env={"COLUMNS": "200"}).stdout
    assert "without the weights of its 19.4 kB" in shown
    assert "as it was built" in run(main, ["restore", str(bundle), str(model)]).stdout
    assert "has its weights" in run(main, ["restore", str(bundle), str(model)]).stdout
    again = run(main, ["restore", str(bundle), str(model), "--json"])
    assert json.loads(again.stdout) == {"restored": []}
    missing = run(main, ["restore", "absent", str(model)])
    assert missing.exit_code == 1
    assert missing.stderr.startswith("Error: There is no bundle directory")
