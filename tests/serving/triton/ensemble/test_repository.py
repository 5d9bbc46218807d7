"""Writing and checking an ensemble's models, without a server."""

import json
import shutil
from pathlib import Path

import pytest

from serving.errors import UserError
from serving.triton.repository import CONFIG, Deployment, write_version
from serving.triton.settings import Settings
from tests.serving.tiny_bundle import make_bundle
from tests.serving.triton.test_repository import edit, problems, run

MODELS = ["tiny", "tiny-engine", "tiny-postprocessing", "tiny-preprocessing"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def test_four_models_of_the_same_version(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for version in (1, 2):
        assert run(bundle, repository, "--ensemble", "--slots", 3, "--instances", 2) == (
            0,
            f"tiny: version {version} in {repository}\n",
        )
    assert sorted(path.name for path in repository.iterdir()) == MODELS
    for model in MODELS:
        names = {path.name for path in (repository / model).iterdir()}
        assert names == {"1", "2", CONFIG}
        # Only the engine has what costs memory and time, and its settings.
        config = (repository / model / CONFIG).read_text()
        assert ("slots" in config) == ("count: 2" in config) == (model == "tiny-engine")
    assert problems(repository) == {model: [] for model in MODELS}


def test_a_copy_is_made_once_and_needs_nothing_outside(bundle: Path, tmp_path: Path) -> None:
    deployment = Deployment(bundle, "tiny", copies=True, is_ensemble=True)
    write_version(deployment, tmp_path / "models")
    shutil.rmtree(bundle)
    moved = (tmp_path / "models").rename(tmp_path / "moved")
    assert problems(moved) == {model: [] for model in MODELS}
    assert len([path for path in moved.rglob("model.onnx") if "bundle" in path.parts]) == 1


def test_a_key_file_is_what_the_tokenizers_models_need_too(bundle: Path, tmp_path: Path) -> None:
    settings = Settings(slots=3, key_file=tmp_path / "key")
    write_version(Deployment(bundle, "tiny", settings, is_ensemble=True), tmp_path / "models")
    for step in ("preprocessing", "postprocessing"):
        config = (tmp_path / "models" / f"tiny-{step}" / CONFIG).read_text()
        assert f'"key_file" value {{ string_value: "{tmp_path / "key"}" }}' in config


@pytest.mark.parametrize("first", [True, False])
def test_a_model_keeps_its_form(bundle: Path, tmp_path: Path, first: bool) -> None:
    write_version(Deployment(bundle, "tiny", is_ensemble=first), tmp_path / "models")
    before = sorted((tmp_path / "models").rglob("*"))
    with pytest.raises(UserError, match="is an ensemble" if first else "is a single model"):
        write_version(Deployment(bundle, "tiny", is_ensemble=not first), tmp_path / "models")
    assert sorted((tmp_path / "models").rglob("*")) == before


def test_what_no_ensemble_can_do(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        write_version(Deployment(bundle, "tiny", versions=2, is_ensemble=True), tmp_path / "models")
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["files"]["tokenizer.json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no tokenizer"):
        write_version(Deployment(bundle, "tiny", is_ensemble=True), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_check_looks_at_every_step(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_version(Deployment(bundle, "tiny", is_ensemble=True), repository)
    edit("TYPE_UINT64", "TYPE_INT64")(repository / "tiny-engine")
    edit('"handover"', '"handovers"')(repository / "tiny-postprocessing")
    shutil.rmtree(repository / "tiny-preprocessing")
    found = problems(repository)
    assert "the input 'seed'" in found["tiny-engine"][0]
    assert "the input 'handover'" in found["tiny-postprocessing"][0]
    assert "lacks 'tiny-preprocessing'" in found["tiny"][0]
