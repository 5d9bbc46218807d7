"""Kernels of our own for ONNX Runtime's CPU provider: C, compiled when the package is installed.

They take the place of ONNX Runtime's for the same operators, so the same bundles run without them:
where no compiler was found, or the processor lacks AVX2. ``EXPORT_LLM_KERNELS`` in the environment
chooses: ``none`` leaves ONNX Runtime's, ``avx2`` does without AVX-512.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

CHOICE = "EXPORT_LLM_KERNELS"


def library() -> Path | None:
    """The library that decoders need, or None where there is none that works here."""
    return _built("cpu") if instruction_set() else None


def libraries() -> list[Path]:
    """The libraries to register with a session: none where they don't work here."""
    found = (_built(name) for name in ("cpu", "encoders")) if instruction_set() else ()
    return [path for path in found if path is not None]


def instruction_set() -> str | None:
    """The instruction set that the kernels use here, or None where they don't run."""
    path = _built("cpu")
    if path is None or os.environ.get(CHOICE) == "none":
        return None
    read = ctypes.CDLL(str(path)).instruction_set
    read.restype = ctypes.c_char_p
    name: bytes | None = read()
    return name.decode() if name else None


@cache
def _built(name: str) -> Path | None:
    # It is no Python module: the name's end, a Python version, is that of the build alone.
    return next(Path(__file__).parent.glob(f"{name}*.so"), None)
