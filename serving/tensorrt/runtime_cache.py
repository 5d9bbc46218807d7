"""TensorRT-RTX's runtime cache: kernels compiled on this machine, kept for the next start.

It lies in the user's cache directory, for a bundle may be read-only or shared by machines.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def runtime_cache_file(engine_sha256: str, version: str) -> Path:
    """Where the kernels of an engine are kept, for one version of TensorRT-RTX."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "export-llm" / "tensorrt-rtx" / f"{engine_sha256[:32]}-{version}.cache"


def load_runtime_cache(cache: Any, file: Path) -> None:
    """Fill TensorRT-RTX's ``cache`` from a file, if there is one that it takes.

    One of another GPU, driver or version is refused by TensorRT-RTX, and kernels are compiled anew.
    """
    try:
        content = file.read_bytes()
    except OSError:
        return
    if content:
        cache.deserialize(content)


def save_runtime_cache(cache: Any, file: Path) -> None:
    """Write the cache, at once or not at all. Where nothing can be written, nothing is kept."""
    content = cache.serialize()
    if content is None or not (content := bytes(content)):
        return
    # Two processes may end at the same time: each writes a file of its own.
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
