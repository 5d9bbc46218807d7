"""Serve a bundle: tokens from an exported model, without torch, transformers or onnx.

``serving.load(bundle).generate(prompts, max_new_tokens=...)`` is all most programs need, and for
encoders ``serving.load_encoder(bundle).embed(texts)``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.constraints import Constraint
    from serving.decoding import Token
    from serving.encoders.model import EncoderModel
    from serving.encoders.opening import load_encoder
    from serving.errors import UserError
    from serving.generation import Model
    from serving.loading import load
    from serving.result import Generation
    from serving.sampling import LogProbs, SamplingParameters

__all__ = [
    "Constraint",
    "EncoderModel",
    "Generation",
    "LogProbs",
    "Model",
    "SamplingParameters",
    "Token",
    "UserError",
    "load",
    "load_encoder",
]

_HOMES = {
    "Constraint": "constraints",
    "EncoderModel": "encoders.model",
    "Generation": "result",
    "LogProbs": "sampling",
    "Model": "generation",
    "SamplingParameters": "sampling",
    "Token": "decoding",
    "UserError": "errors",
    "load": "opening",  # typed as what decoders' bundles give
    "load_encoder": "encoders.opening",
}


def __getattr__(name: str) -> object:
    # Loaded when first used: commands that only need one of them start in no time.
    if name not in _HOMES:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(import_module(f"serving.{_HOMES[name]}"), name)
