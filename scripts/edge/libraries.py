"""What runs a bundle on a device: our own programs, built for it, and ONNX Runtime's library."""

import importlib.metadata
import shutil
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from scripts.edge.architectures import Architecture
from scripts.edge.programs import run_program
from serving.errors import UserError

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "edge"
TOOLCHAIN = ROOT / "serving" / "native" / "cmake" / "aarch64-linux-gnu.cmake"
LIBRARY = "lib/libonnxruntime.so.1"
"""Where a package has ONNX Runtime's library."""
KERNELS = "lib/libllm_kernels.so"
PROGRAMS = ("bin/llm-run", "bin/llm-serve")


def runtime_files(folder: Path) -> dict[str, Path]:
    """Programs and libraries of an installed native runtime, by their names in a package.

    Raises UserError if ``folder`` isn't one.
    """
    files = {name: folder / name for name in PROGRAMS}
    # One name each, as the dynamic linker looks for it: a package has no links.
    files |= {f"lib/{path.name}": path for path in (folder / "lib").glob("lib*.so.?")}
    files |= {f"lib/{path.name}": path for path in folder.glob(KERNELS)}
    for path in files.values():
        if not path.is_file():
            raise UserError(
                f"{str(folder)!r} lacks {path.relative_to(folder)}: install serving/native and "
                "scripts/edge/service there with CMake, or leave --runtime out."
            )
    return files


def build_runtime(architecture: Architecture) -> Path:
    """Build the native runtime and the service for a device; returns where they are installed.

    Kernels for this machine's architecture are those that were compiled with this package.
    """
    if not architecture.is_here and architecture.preset is None:
        raise UserError(
            f"The runtime for {architecture.machine} can't be built here: build it there and give "
            "--runtime."
        )
    installed = BUILD / architecture.debian
    _cmake(ROOT / "serving" / "native", architecture, installed)
    _cmake(ROOT / "scripts" / "edge" / "service", architecture, installed)
    kernels = find_spec("serving.kernels.cpu")
    if architecture.is_here and kernels and kernels.origin:
        shutil.copyfile(kernels.origin, installed / KERNELS)
    return installed


def _cmake(source: Path, architecture: Architecture, installed: Path) -> None:
    build = BUILD / f"{architecture.debian}-{source.name}"
    options = [f"-DCMAKE_INSTALL_PREFIX={installed}", f"-DCMAKE_PREFIX_PATH={installed}"]
    options += ["-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_BUILD_TYPE=Release"]
    if source.name == "native":
        options.append("-DLLM_KERNELS=OFF")
    if not architecture.is_here:
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    steps: tuple[tuple[str | Path, ...], ...] = (
        ("-S", source, "-B", build, *options),
        ("--build", build),
        ("--install", build, "--strip"),
    )
    for arguments in steps:
        run_program("cmake", *arguments, package="cmake", purpose="Building the runtime")


def onnxruntime_files(architecture: Architecture) -> dict[str, bytes | Path]:
    """ONNX Runtime's library and its licences, of the version installed here."""
    if architecture.is_here:
        return dict(_of_installed())
    return dict(_of_wheel(_wheel(architecture)))


def _of_installed() -> Iterator[tuple[str, Path]]:
    files = importlib.metadata.distribution("onnxruntime").files or []
    for file in files:
        if name := _name_in_package(str(file)):
            yield name, Path(str(file.locate()))


def _of_wheel(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if name := _name_in_package(member):
                yield name, archive.read(member)


def _name_in_package(member: str) -> str | None:
    folder, _, name = member.rpartition("/")
    if folder == "onnxruntime/capi" and name.startswith("libonnxruntime.so."):
        return LIBRARY
    if folder == "onnxruntime" and name in ("LICENSE", "ThirdPartyNotices.txt"):
        return f"licenses/onnxruntime/{name}"
    return None


def _wheel(architecture: Architecture) -> Path:
    """The wheel for another architecture, downloaded once."""
    version = importlib.metadata.version("onnxruntime")
    pattern = f"onnxruntime-{version}-*_{architecture.machine}.whl"
    folder = BUILD / "wheels"
    if not list(folder.glob(pattern)):
        run_program(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", "--platform", architecture.wheel, "--dest", folder),
            f"onnxruntime=={version}",
            package="python3-pip",
            purpose=f"Downloading ONNX Runtime for {architecture.machine}",
        )
    return next(folder.glob(pattern))
