"""Serve a bundle: tokens from an exported model, without torch, transformers or onnx.

``serving.load(bundle).generate(prompts, max_new_tokens=...)`` is all most programs need.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.constraints import Constraint
    from serving.decoding import Token
    from serving.errors import UserError
    from serving.generation import Model
    from serving.loading import load
    from serving.result import Generation
    from serving.sampling import LogProbs, SamplingParameters

__all__ = [
    "Constraint",
    "Generation",
    "LogProbs",
    "Model",
    "SamplingParameters",
    "Token",
    "UserError",
    "load",
]

_HOMES = {
    "Constraint": "constraints",
    "Generation": "result",
    "LogProbs": "sampling",
    "Model": "generation",
    "SamplingParameters": "sampling",
    "Token": "decoding",
    "UserError": "errors",
    "load": "loading",
}


def __getattr__(name: str) -> object:
    # Loaded when first used: commands that only need one of them start in no time.
    if name not in _HOMES:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(import_module(f"serving.{_HOMES[name]}"), name)
