"""Triton's server from PyPI's nvidia-pytriton, without a container."""

import ctypes
import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from scripts.triton_server.environment import make_environment
from scripts.triton_server.launch import Launch
from serving.errors import UserError

_QUERY = """
import json, sys, sysconfig
print(json.dumps({
    "packages": sysconfig.get_path("purelib"),
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "libpython": f"libpython3.{sys.version_info.minor}.so.1.0",
}))
"""


def wheel_launch(repository: Path, options: Sequence[str]) -> Launch:
    """How to start the server of .venv-triton, which is made first if need be."""
    python = make_environment()
    output = subprocess.run([python, "-c", _QUERY], stdout=subprocess.PIPE, text=True, check=True)
    paths = json.loads(output.stdout)
    triton = Path(paths["packages"], "pytriton", "tritonserver")
    # Servers on one machine share /dev/shm: a name of its own tells which files are whose.
    prefix = f"export-llm-triton-{uuid.uuid4().hex[:12]}-"
    command = [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={triton / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--allow-gpu-metrics=false",
        *options,
    ]
    # The stub finds its packages through the first python3 on the PATH; it ignores PYTHONPATH.
    environment = {"PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    if Path(paths["libraries"], paths["libpython"]).is_file():
        inherited = os.environ.get("LD_LIBRARY_PATH")
        directories = [paths["libraries"], *([inherited] if inherited else [])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(directories)
    else:
        _check_loads(paths["libpython"])
    return Launch(command, environment, prefix)


def _check_loads(library: str) -> None:
    """Raise UserError if the system's linker doesn't find a library that the stub needs."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        package = library.removesuffix(".so.1.0")
        raise UserError(
            f"Triton's Python backend needs {library}, which this Python comes without: install "
            f"it (Debian's {package}), or use a container."
        ) from error
