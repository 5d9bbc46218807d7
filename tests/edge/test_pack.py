"""What scripts/edge/pack writes, as others read it: tar, sha256sum, dpkg-deb, systemd-analyze."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from scripts.edge.contents import HEADROOM
from scripts.edge.host import SCRIPT
from scripts.edge.libraries import LIBRARY
from serving.bundle import Bundle, file_info, open_bundle
from tests.edge.conftest import make_runtime, run_pack
from tests.serving.tiny_bundle import make_bundle

pytestmark = pytest.mark.xdist_group("edge")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runtime(tmp_path_factory.mktemp("runtime"), "runtime")


def unpacked(package: Path, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["tar", "-xf", package, "-C", folder], check=True)
    return folder


@pytest.fixture(autouse=True)
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in place of ONNX Runtime's, which takes time to copy and compress."""
    monkeypatch.setattr("scripts.edge.contents.onnxruntime_files", lambda _: {LIBRARY: b"library"})


@pytest.fixture
def package(bundle: Path, runtime: Path, tmp_path: Path) -> Path:
    path = tmp_path / "package.tar"
    done = run_pack(bundle, path, "--runtime", runtime, "--context", 64)
    assert done.exit_code == 0, done.output
    return path


def test_only_what_a_device_needs_is_in_it(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    shutil.copytree(bundle, full)
    manifest = json.loads((full / "bundle.json").read_text())
    rtx = manifest["engines"][0] | {"target": "tensorrt-rtx", "file": "model.engine"}
    manifest["engines"].append(rtx)
    for name in ("model.engine", "report.md", "model.onnx.data"):
        (full / name).write_text("")
        manifest["files"][name] = file_info(full / name).model_dump()
    (full / "bundle.json").write_text(json.dumps(manifest))
    done = run_pack(full, tmp_path / "package.tar", "--runtime", runtime)
    assert done.exit_code == 0, done.output
    folder = unpacked(tmp_path / "package.tar", tmp_path / "unpacked")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    packed = open_bundle(folder / "bundle")
    assert set(packed.manifest.files) == {
        "chat_template.jinja",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
    }
    assert [engine.target for engine in packed.manifest.engines] == ["onnxruntime"]
    assert {path.name for path in (folder / "bundle").iterdir()} == {
        "bundle.json",
        *packed.manifest.files,
    }


def test_the_same_bundle_gives_the_same_bytes(
    bundle: Path, runtime: Path, package: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, copy_function=shutil.copyfile)  # with new times
    again = tmp_path / "again.tar"
    assert run_pack(copy, again, "--runtime", runtime, "--context", 64).exit_code == 0
    assert again.read_bytes() == package.read_bytes()
    with tarfile.open(package) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == sorted(m.name for m in members)
    assert {(m.uid, m.gid, m.uname) for m in members} == {(0, 0, "root")}
    assert {m.mode for m in members if m.name.startswith("bin/")} == {0o755}


def test_an_incomplete_runtime_is_refused(bundle: Path, tmp_path: Path) -> None:
    done = run_pack(bundle, tmp_path / "package.tar", "--runtime", tmp_path)
    assert done.exit_code == 1
    assert "lacks bin/llm-run" in done.stderr
    assert not list(tmp_path.iterdir())


def kv_bytes(bundle: Bundle, tokens: int) -> int:
    """Two numbers of four bytes for each head, dimension and layer."""
    layers = bundle.manifest.graph.layers
    return tokens * sum(4 * each.kv_heads * 2 * each.key_dim for each in layers)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_units_are_systemds_and_shut_in(package: Path, bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "opt" / "edge-model"
    unpacked(package, tmp_path / "unpacked")
    (root / "versions").mkdir(parents=True)
    (tmp_path / "unpacked").rename(root / "versions" / "1")
    (root / "current").symlink_to("versions/1")
    units = tmp_path / "units"
    units.mkdir()
    subprocess.run(["sh", "-c", SCRIPT, "device", "write_units", str(root), str(units)], check=True)
    service, listener = units / "edge-model.service", units / "edge-model.socket"
    done = subprocess.run(
        ["systemd-analyze", "verify", str(service), str(listener)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "edge-model" not in done.stderr  # no warning about ours
    lines = service.read_text().splitlines()
    opened = open_bundle(bundle)
    weights = (bundle / "model.onnx").stat().st_size
    assert f"MemoryMax={weights + kv_bytes(opened, 64) + HEADROOM}" in lines
    assert f"ExecStart={root}/current/bin/llm serve" in lines
    assert "ListenStream=/run/edge-model.socket" in listener.read_text().splitlines()
    security = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(service)]
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_a_deb_installs_switches_and_goes(bundle: Path, runtime: Path, tmp_path: Path) -> None:
    debs = {}
    for version in ("1.0", "2.0"):
        debs[version] = tmp_path / f"{version}.deb"
        options = ("--format", "deb", "--runtime", runtime, "--version", version)
        done = run_pack(bundle, debs[version], *options)
        assert done.exit_code == 0, done.output
    fields = subprocess.run(
        ["dpkg-deb", "--field", debs["1.0"]], capture_output=True, text=True, check=True
    ).stdout
    assert "Architecture: amd64" in fields
    assert "Version: 1.0" in fields
    again = tmp_path / "again.deb"
    run_pack(bundle, again, *("--format", "deb", "--runtime", runtime, "--version", "1.0"))
    assert again.read_bytes() == debs["1.0"].read_bytes()

    root = tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    # Without a chroot, which would need a whole system in it.
    forced = ["--force-script-chrootless", "--force-depends", "--force-not-root"]
    dpkg: list[str | Path] = ["dpkg", f"--root={root}", *forced]
    current = root / "opt/export-llm/current"
    for version, deb in debs.items():
        installed = subprocess.run([*dpkg, "-i", deb], capture_output=True, text=True, check=False)
        assert installed.returncode == 0, installed.stderr
        assert json.loads((current / "package.json").read_text())["version"] == version
        assert len(list(current.parent.joinpath("versions").iterdir())) == 1
    subprocess.run([*dpkg, "--remove", "export-llm-package"], check=True, capture_output=True)
    assert not current.parent.exists()

    done = run_pack(bundle, tmp_path / "x.deb", "--format", "deb", "--sign", "key")
    assert done.exit_code == 2
    assert "A .deb is neither signed nor encrypted" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", 10**9), "lower it"),
        (("--version", "v1"), "must be a digit"),
        (("--version", "1/../x"), "must be a digit"),
        (("--sign", "no-such-key"), "Signing failed, ssh-keygen says"),
    ],
)
def test_refusals(
    bundle: Path, runtime: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    done = run_pack(bundle, tmp_path / "package.tar", "--runtime", runtime, *options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(
    bundle: Path, runtime: Path, package: Path, tmp_path: Path
) -> None:
    before = package.read_bytes()
    done = run_pack(bundle, package, "--runtime", runtime)
    assert "choose another name, or pass --force" in done.stderr
    assert package.read_bytes() == before
    assert run_pack(bundle, package, "--runtime", runtime, "--force").exit_code == 0
    assert package.read_bytes() != before  # another context
    done = run_pack(bundle, tmp_path / "none" / "package.tar", "--runtime", runtime)
    assert "There is no directory" in done.stderr


def test_bundles_that_devices_can_not_run(runtime: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "rtx")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["engines"][0]["target"] = "tensorrt-rtx"
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    done = run_pack(bundle, tmp_path / "package.tar", "--runtime", runtime)
    assert "has no engine of ONNX Runtime in one piece" in done.stderr
    (bundle / "encryption.json").write_text("{}")
    done = run_pack(bundle, tmp_path / "package.tar", "--runtime", runtime)
    assert "decrypt it with serve-llm decrypt" in done.stderr
