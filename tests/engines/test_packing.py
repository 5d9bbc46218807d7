"""A bundle is written completely or not at all, by one process at a time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.packing import checksums, commit, reserved
from serving.bundle import MANIFEST, Manifest, open_bundle
from serving.errors import UserError
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_bundle(make_bundle(tmp_path / "model")).manifest


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write(bundle: Path, manifest: Manifest, *, force: bool = False, text: str = "new") -> None:
    with reserved(bundle, force=force) as partial:
        (partial / "graph").write_text(text)
        commit(partial, bundle, manifest, force=force)


def fail(bundle: Path, *, force: bool = False) -> None:
    """Fail in the middle of writing."""
    with reserved(bundle, force=force) as partial:
        (partial / "check").mkdir()
        (partial / "check" / "graph").write_text("half")
        raise RuntimeError


def test_a_bundle_appears_with_its_manifest(tmp_path: Path, manifest: Manifest) -> None:
    bundle = tmp_path / "new" / "folder" / "bundle"
    with reserved(bundle, force=False) as partial:
        (partial / "graph").write_text("new")
        assert partial.parent == bundle.parent
        assert not bundle.exists()
        commit(partial, bundle, manifest, force=False)
    assert names(bundle.parent) == ["bundle"]
    assert names(bundle) == [MANIFEST, "graph"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    bundle = tmp_path / "new" / "folder" / "bundle"
    with pytest.raises(RuntimeError):
        fail(bundle)
    assert names(tmp_path) == []


def test_a_failure_leaves_the_bundle_that_was_there(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "folder"
    bundle = folder / "bundle"
    write(bundle, manifest, text="old")
    with pytest.raises(RuntimeError):
        fail(bundle, force=True)
    assert names(folder) == ["bundle"]
    assert (bundle / "graph").read_text() == "old"


def test_force_replaces_a_bundle_and_nothing_else(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "folder"
    bundle = folder / "bundle"
    write(bundle, manifest, text="old")
    (bundle / "stray").write_text("from the old one")
    with pytest.raises(UserError, match="--force"):
        write(bundle, manifest)
    write(bundle, manifest, force=True)
    assert names(folder) == ["bundle"]
    assert names(bundle) == [MANIFEST, "graph"]
    assert (bundle / "graph").read_text() == "new"


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def make_file(path: Path) -> None:
    path.write_text("years of work")


@pytest.mark.parametrize("make", [make_directory, make_file])
def test_force_never_deletes_what_is_no_bundle(
    tmp_path: Path, manifest: Manifest, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="no bundle"):
        write(tmp_path / "precious", manifest, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_force_takes_an_empty_directory(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", manifest, force=True)
    assert names(tmp_path / "empty") == [MANIFEST, "graph"]


def test_what_comes_into_being_meanwhile_is_kept(tmp_path: Path, manifest: Manifest) -> None:
    bundle = tmp_path / "folder" / "bundle"
    with reserved(bundle, force=False) as partial:
        make_directory(bundle)
        with pytest.raises(UserError, match="exists"):
            commit(partial, bundle, manifest, force=False)
    assert names(bundle) == ["thesis.txt"]
    assert names(bundle.parent) == ["bundle"]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path, manifest: Manifest) -> None:
    bundle = tmp_path / "folder" / "bundle"
    script = f"""
import os, signal
from collections.abc import Callable
from pathlib import Path
from engines.packing import reserved
with reserved(Path({str(bundle)!r}), force=False) as partial:
    (partial / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    assert names(bundle.parent) == [".bundle.partial"]
    write(bundle, manifest)
    assert names(bundle.parent) == ["bundle"]
    assert names(bundle) == [MANIFEST, "graph"]


def test_a_replacement_that_was_killed_is_undone(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "folder"
    bundle = folder / "bundle"
    write(bundle, manifest, text="old")
    bundle.rename(folder / ".bundle.previous")  # killed between the two renames
    with pytest.raises(RuntimeError):
        fail(bundle, force=True)
    assert (bundle / "graph").read_text() == "old"

    (folder / ".bundle.previous").mkdir()  # killed after them
    write(bundle, manifest, force=True)
    assert names(folder) == ["bundle"]


def test_two_processes_do_not_write_one_bundle(tmp_path: Path, manifest: Manifest) -> None:
    bundle = tmp_path / "folder" / "bundle"
    script = f"""
import sys
from collections.abc import Callable
from pathlib import Path
from engines.packing import reserved
from serving.errors import UserError
try:
    with reserved(Path({str(bundle)!r}), force=True): pass
except UserError as error:
    sys.exit(str(error))
"""
    with reserved(bundle, force=False) as partial:
        (partial / "graph").write_text("new")
        second = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True
        )
        assert second.returncode == 1
        assert "Another process is exporting" in second.stderr
        assert names(partial) == ["graph"]
        commit(partial, bundle, manifest, force=False)
        with reserved(bundle, force=True) as next_partial:  # a third that starts at this moment
            assert next_partial == partial
    assert names(bundle.parent) == ["bundle"]


def test_the_next_writer_is_left_alone(tmp_path: Path, manifest: Manifest) -> None:
    bundle = tmp_path / "folder" / "bundle"
    with reserved(bundle, force=False) as partial:
        commit(partial, bundle, manifest, force=False)
        partial.mkdir()  # the next process begins before this one has left
    assert partial.exists()


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="can't be made"),
        reserved(tmp_path / "file" / "bundle", force=False),
    ):
        pass


def test_checksums_name_every_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("two")
    (tmp_path / "a").write_text("")
    sums = checksums(tmp_path)
    assert list(sums) == ["a", "b"]
    assert sums["b"].size == 3
    assert sums["a"].sha256.startswith("e3b0c442")
