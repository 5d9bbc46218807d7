"""Versions of what builds a bundle, whichever package on PyPI it came from."""

import importlib
import importlib.metadata


def version_of(tool: str) -> str:
    """The version of an installed package, or of the module of its name.

    ONNX Runtime is ``onnxruntime`` also where onnxruntime-gpu brought it. What runs from a checkout
    has no version and is called that.
    """
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        return str(importlib.import_module(tool).__version__)
    except ImportError:
        return "checkout"
