"""``serve-llm doctor``: which engines and devices work here, and what the others need."""

import ctypes
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from serving.commands.options import json_option
from serving.errors import UserError
from serving.kernels import instruction_set

if TYPE_CHECKING:
    from serving.onnxruntime import Provider

# ONNX, serialised: one Identity node on a float tensor x, opset 13.
IDENTITY_GRAPH = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a"
    "0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


@dataclass(frozen=True)
class Check:
    """One thing looked at; ``remedy`` says what to do where it doesn't work."""

    name: str
    works: bool
    detail: str
    remedy: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show which engines and devices work here, and what to install for the others."""
    checks = list(examine())
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
        return
    for check in checks:
        mark = click.style("works", fg="green") if check.works else click.style("no", fg="yellow")
        click.echo(f"{check.name + ':':28}{mark} - {check.detail}")
        if check.remedy:
            click.echo(f"{'':28}{check.remedy}")


def examine() -> Iterator[Check]:
    """Look at everything that bundles may run on, and at what makes bundles."""
    gpu = _gpu()
    yield gpu
    yield _onnxruntime("ONNX Runtime on the CPU", "cpu", "Install onnxruntime.")
    yield _kernels()
    remedy = "Install export-llm[cuda] in place of onnxruntime, on a machine with an NVIDIA GPU."
    yield _onnxruntime("ONNX Runtime on CUDA", "cuda", remedy)
    cuda = _cuda()
    yield cuda
    yield from _tensorrt("TensorRT-RTX", "tensorrt_rtx", cuda, "Install export-llm[rtx].")
    yield from _tensorrt("TensorRT", "tensorrt", cuda, "Install export-llm[tensorrt].")
    yield _exporter()


def _gpu() -> Check:
    name = "NVIDIA GPU"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check(name, False, "libcuda.so.1 not found", "Install NVIDIA's driver.")
    count, version = ctypes.c_int(), ctypes.c_int()
    if status := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return Check(name, False, f"CUDA error {status}", "Check the driver with nvidia-smi.")
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver = f"driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    text = ctypes.create_string_buffer(100)
    names = []
    for device in range(count.value):
        cuda.cuDeviceGetName(text, len(text), device)
        names.append(text.value.decode())
    return Check(name, bool(names), ", ".join([*names, driver]))


def _onnxruntime(name: str, provider: "Provider", remedy: str) -> Check:
    try:
        import onnxruntime

        from serving.onnxruntime import open_session

        open_session(IDENTITY_GRAPH, provider, 1)
    except (ImportError, UserError) as error:
        return Check(name, False, str(error), remedy)
    return Check(name, True, f"version {onnxruntime.__version__}")


def _kernels() -> Check:
    name, used = "Kernels for the CPU", instruction_set()
    if used is not None:
        return Check(name, True, used)
    remedy = "Install a C compiler (gcc or clang) and then export-llm again, without its wheel."
    return Check(name, False, "ONNX Runtime's own are used", remedy)


def _cuda() -> Check:
    """CUDA as the runtime of TensorRT's engines sees it: cuda-bindings, driver and first device."""
    from serving.tensorrt.devices import find_device, find_driver
    from serving.tensorrt.fit import refuse_driver, version_text

    name = "CUDA for TensorRT"
    try:
        driver = find_driver()
        refuse_driver(driver)
        device = find_device()
    except UserError as error:
        said, _, remedy = str(error).rpartition(": ")
        return Check(name, False, said, remedy[:1].upper() + remedy[1:])
    return Check(
        name,
        True,
        f"CUDA {version_text(driver.runtime_version)}, {device.name} of compute capability "
        f"{device.compute_capability}, {device.free_memory / 1e9:,.1f} of "
        f"{device.total_memory / 1e9:,.1f} GB free",
    )


def _tensorrt(name: str, module: str, cuda: Check, remedy: str) -> Iterator[Check]:
    """The builder, which needs the library alone, and the runtime, which needs a GPU too."""
    version, reason = None, "not installed"
    if find_spec(module) is not None:
        try:
            version = import_module(module).__version__
        except (ImportError, OSError) as error:
            reason = f"can't be loaded ({error})"
    if version is None:
        yield Check(f"{name} builder", False, reason, remedy)
        yield Check(f"{name} runtime", False, reason, remedy)
        return
    yield Check(f"{name} builder", True, f"version {version}")
    yield Check(
        f"{name} runtime",
        cuda.works,
        f"version {version}",
        "" if cuda.works else f"See {cuda.name}.",
    )


def _exporter() -> Check:
    missing = [m for m in ("torch", "transformers", "onnx", "onnxscript") if find_spec(m) is None]
    if missing:
        absent = f"{', '.join(missing)} not installed"
        return Check("Exporter", False, absent, "Install export-llm[export].")
    return Check("Exporter", True, "torch, transformers, onnx and onnxscript are installed")
