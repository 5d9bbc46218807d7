"""Embeddings of texts from a decoder: its last hidden states, pooled to one vector."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from serving.decoding import Failure, Limits, Sequence
from serving.engine import EmbeddingEngine, Engine, FloatArray, IntArray
from serving.errors import UserError
from serving.sampling import Float64Array, SamplingParameters, no_number

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


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vector float32 [hidden] of prompt number ``index``."""

    index: int
    vector: FloatArray


class EmbeddedPrompt(Sequence):
    """A prompt whose hidden states are pooled, chunk by chunk; nothing is generated from it.

    With ``normalize`` its vector has length 1.
    """

    def __init__(
        self,
        index: int,
        ids: IntArray,
        pooling: Pooling,
        normalize: bool,
        *,
        is_truncated: bool = False,
        adapter: int = 0,
    ) -> None:
        limits = Limits(capacity=len(ids), max_new_tokens=None, min_new_tokens=0, eos=(), stop=())
        super().__init__(index, ids, SamplingParameters(), limits, None, adapter=adapter)
        self.is_truncated = is_truncated
        self._pooling = pooling
        self._normalize = normalize
        self._pooled: Float64Array = np.zeros(0)

    def run_chunk(self, engine: EmbeddingEngine, start: int, size: int, slot: int) -> int:
        """Run ``size`` tokens from ``start`` on through a slot; returns how many there were."""
        chunk = self.prompt_ids[None, start : start + size]
        states = engine.embed(chunk, np.array([start]), slot)[0].astype(np.float64)
        if self._pooling == "last":
            self._pooled = states[-1]
        else:
            weight = chunk.shape[1] / len(self.prompt_ids)
            mean = states.mean(axis=0) * weight
            self._pooled = self._pooled + mean if start else mean
        return int(chunk.shape[1])

    def embedded(self) -> Embedded | Failure:
        """The result after the last chunk; a failure if the engine gave NaN."""
        if np.isnan(self._pooled).any():
            return self.fail(no_number())
        self.finished = True
        length = np.linalg.norm(self._pooled)
        vector = self._pooled / length if self._normalize and length > 0 else self._pooled
        return Embedded(self.index, vector.astype(np.float32))
