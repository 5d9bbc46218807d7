"""The kernels, compiled for a device when they are first used there, and kept.

NVRTC compiles them in a few seconds, for exactly the device at hand, and needs no GPU. Shipping
PTX instead would put a compiled file into the package that can be older than its source, and that
drivers older than its compiler refuse.
"""

import contextlib
import hashlib
import os
import tempfile
from importlib import resources
from pathlib import Path

from serving.errors import UserError

Capability = tuple[int, int]

# a * b + c rounds twice, as everywhere else: so the host's build of the source gives the same bits.
OPTIONS = ("--std=c++17", "--fmad=false")


def source() -> str:
    """Return the text of sampling.cu."""
    return (resources.files(__package__) / "sampling.cu").read_text(encoding="utf-8")


def kernels(capability: Capability) -> bytes:
    """Return the kernels as a cubin for devices of a compute ``capability``, compiled at most once.

    It is kept under the user's cache directory, named after a hash of all that it comes of. Raises
    UserError where NVRTC is missing or older than the device.
    """
    key = "\n".join((source(), *OPTIONS, str(capability), str(_nvrtc_version())))
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = cache_directory() / f"sampling-{name}.cubin"
    if path.is_file():
        return path.read_bytes()
    cubin, _ = compile_source(source(), capability)
    with contextlib.suppress(OSError):  # a home that can't be written: compiled again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(cubin)
        Path(file.name).replace(path)
    return cubin


def cache_directory() -> Path:
    """Return where compiled kernels are kept: in XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "export-llm"


def compile_source(text: str, capability: Capability) -> tuple[bytes, str]:
    """Compile CUDA C++; returns the cubin and the compiler's log, which has the warnings.

    Raises UserError where NVRTC is missing or doesn't know the capability, RuntimeError with the
    log where the source is wrong.
    """
    _nvrtc_version()
    from cuda.bindings import nvrtc

    architecture = "sm_{}{}".format(*capability)
    options = [f"--gpu-architecture={architecture}".encode(), *(o.encode() for o in OPTIONS)]
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), b"sampling.cu", 0, [], [])
    _check("nvrtcCreateProgram", status)
    try:
        (compiled,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if compiled == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise UserError(
                f"The installed NVRTC has no {architecture}, which this GPU is: "
                "update nvidia-cuda-nvrtc."
            )
        status, size = nvrtc.nvrtcGetProgramLogSize(program)
        _check("nvrtcGetProgramLogSize", status)
        log = _written_to(size)
        _check("nvrtcGetProgramLog", *nvrtc.nvrtcGetProgramLog(program, log))
        text_of_log = log.rstrip(b"\0").decode()
        _check(f"nvrtcCompileProgram, which says {text_of_log!r},", compiled)
        status, size = nvrtc.nvrtcGetCUBINSize(program)
        _check("nvrtcGetCUBINSize", status)
        cubin = _written_to(size)
        _check("nvrtcGetCUBIN", *nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return cubin[:size], text_of_log


def _written_to(size: int) -> bytes:
    """Bytes that NVRTC's Python functions write into.

    One more than they need: single bytes are objects that all of Python shares, and to write into
    one would change it everywhere.
    """
    return bytes(size + 1)


def _nvrtc_version() -> tuple[int, int]:
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "Sampling on the GPU needs NVRTC, which is not installed: "
            "pip install cuda-bindings nvidia-cuda-nvrtc."
        ) from error
    _check("nvrtcVersion", status)
    return major, minor


def _check(call: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{call} failed: {status!r}")
