"""TensorRT-RTX or TensorRT: the one place that imports them.

Both have the same API. What builds and what runs engines takes the module as ``library``.
"""

import importlib
from typing import Any

from serving.bundle import Target
from serving.errors import UserError

_MODULES: dict[Target, tuple[str, str]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
    "tensorrt": ("tensorrt", "tensorrt"),
}


def load_library(target: Target) -> Any:
    """Import the target's library. Raises UserError where it can't be imported."""
    module, extra = _MODULES[target]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise UserError(
            f"The target {target} needs the Python package {module} ({error}): "
            f"install it with pip install 'export-llm[{extra}]'."
        ) from error
