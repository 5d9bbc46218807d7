"""Writing and checking a model repository, without a server."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.cli import main
from serving.errors import UserError
from serving.triton.check import check_repository
from serving.triton.repository import CONFIG, Deployment, write_version
from serving.triton.settings import Settings
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["triton", *map(str, arguments)])
    return done.exit_code, done.output


def problems(repository: Path) -> dict[str, list[str]]:
    return dict(check_repository(repository))


def test_a_version_is_complete_and_nothing_else_is_left(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    assert run(bundle, repository, "--slots", 3, "--no-verify") == (
        0,
        f"tiny: version 1 in {repository}\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "tiny"]
    version = repository / "tiny" / "1"
    assert (version / "bundle").resolve() == bundle.resolve()
    assert (version / "bundle").is_symlink()
    assert (version / "serving" / "triton" / "model.py").is_file()
    assert not (version / "serving" / "http").exists()
    config = (repository / "tiny" / CONFIG).read_text()
    assert dict(re.findall(r'key: "(\w+)" value { string_value: "(.*)" }', config)) == {
        "slots": "3",
        "verify": "false",
    }
    assert problems(repository) == {"tiny": []}


def test_a_copy_needs_nothing_outside_the_repository(bundle: Path, tmp_path: Path) -> None:
    write_version(Deployment(bundle, "tiny", copies=True), tmp_path / "models")
    shutil.rmtree(bundle)
    moved = (tmp_path / "models").rename(tmp_path / "moved")
    assert problems(moved) == {"tiny": []}


def test_versions_are_counted_on(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for number in (1, 2, 3):
        deployment = Deployment(bundle, "tiny", Settings(slots=number), versions=2)
        assert write_version(deployment, repository).name == str(number)
    assert "num_versions: 2" in (repository / "tiny" / CONFIG).read_text()
    assert '"slots" value { string_value: "3" }' in (repository / "tiny" / CONFIG).read_text()


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "ä", "-x"])
def test_names_that_triton_or_a_path_could_misread(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="can't be named"):
        write_version(Deployment(bundle, name), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_nothing_is_written_for_a_bundle_that_is_damaged(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokenizer.json").write_text("{}")
    code, output = run(bundle, tmp_path / "models")
    assert code == 1
    assert "tokenizer.json" in output
    assert not (tmp_path / "models").exists()


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        text = (model / CONFIG).read_text()
        assert old in text
        (model / CONFIG).write_text(text.replace(old, new))

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return change


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (remove(CONFIG), "config.pbtxt can't be read"),
        (edit("max_batch_size", "max_batch"), 'no field named "max_batch"'),
        (edit('name: "tiny"', 'name: "other"'), "names the model 'other'"),
        (edit("max_batch_size: 1", "max_batch_size: 8"), "max_batch_size: 1"),
        (edit("decoupled: true", "decoupled: false"), "decoupled"),
        (edit('"seed"', '"seeds"'), "the input 'seed' as TYPE_UINT64"),
        (edit("TYPE_UINT64", "TYPE_INT64"), "the input 'seed' as TYPE_UINT64"),
        (edit("dims: [-1, -1]", "dims: [-1]"), "the output 'output_ids' as TYPE_INT32 [-1, -1]"),
        (edit("latest { num_versions: 1 }", "specific { versions: [4] }"), "no version to serve"),
        (
            edit(
                "version_policy {",
                'parameters { key: "slot" value { string_value: "1" } }\nversion_policy {',
            ),
            "parameter 'slot'",
        ),
        (remove("1"), "no version to serve"),
        (remove("1/model.py"), "Version 1 has no model.py"),
        (remove("1/bundle"), "Version 1"),
    ],
)
def test_check_finds(
    bundle: Path, tmp_path: Path, breaks: Callable[[Path], None], problem: str
) -> None:
    repository = tmp_path / "models"
    write_version(Deployment(bundle, "tiny"), repository)
    assert run("--check", repository) == (0, "tiny: nothing wrong\n")
    breaks(repository / "tiny")
    assert problem in " ".join(problems(repository)["tiny"])
    code, output = run("--check", repository)
    assert code == 1
    assert problem in output


def test_check_of_what_is_no_repository(bundle: Path, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "can't be read"), (bundle, "holds no model")):
        code, output = run("--check", path)
        assert code == 1
        assert reason in output
