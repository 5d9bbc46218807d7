"""Embeddings of texts from a decoder: its last hidden states, pooled to one vector."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from serving.engine import EmbeddingEngine, Engine, FloatArray, IntArray
from serving.errors import UserError
from serving.sampling import no_number

Pooling = Literal["last", "mean"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each of n prompts: ``vectors`` float32 [n, hidden].

    ``prompt_tokens`` counts what was embedded of each; a ``truncated`` prompt went on.
    """

    vectors: FloatArray
    prompt_tokens: list[int]
    truncated: list[bool]


def require_embeddings(engine: Engine) -> EmbeddingEngine:
    """Return the engine as one that gives hidden states; raises UserError if it gives none."""
    if not isinstance(engine, EmbeddingEngine) or engine.hidden_size is None:
        raise UserError(
            "This bundle's engine gives no embeddings, as those of TensorRT and of older bundles: "
            "export the model again, with --target onnxruntime."
        )
    return engine


def check_pooling(pooling: str) -> None:
    """Raise UserError for a pooling that there isn't."""
    if pooling not in get_args(Pooling):
        allowed = " or ".join(repr(choice) for choice in get_args(Pooling))
        raise UserError(f"pooling is {pooling!r}, but must be {allowed}: change it.")


def embed(
    engine: EmbeddingEngine,
    ids: IntArray,
    pooling: Pooling,
    normalize: bool,
    chunk: int,
    slot: int = 0,
) -> FloatArray:
    """Run ``ids`` [n] through one slot, ``chunk`` tokens at once, and pool their hidden states.

    Returns a vector float32 [hidden], of length 1 with ``normalize``. Raises UserError if the
    engine gave NaN.
    """
    total = np.zeros(engine.hidden_size or 0)
    for start in range(0, len(ids), chunk):
        states = engine.embed(ids[None, start : start + chunk], np.array([start]), slot)[0]
        total += states.sum(axis=0, dtype=np.float64)
    pooled = states[-1].astype(np.float64) if pooling == "last" else total / len(ids)
    if np.isnan(pooled).any():
        raise no_number()
    length = np.linalg.norm(pooled)
    if normalize and length > 0:
        pooled = pooled / length
    vector: FloatArray = pooled.astype(np.float32)
    return vector
