"""An engine whose layers are split into stages: each in turn hands its hidden states on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from serving.bundle import CacheDType
from serving.closing import Closing
from serving.engine import EmbeddingEngine, FloatArray, IntArray
from serving.kv_cache import STORAGE, KVCache, aligned_zeros

HiddenStates = Mapping[str, npt.NDArray[Any]]
"""What crosses a boundary: arrays [n, sequence, ...] by the names of serving/contract.py."""


class Stage(EmbeddingEngine, Protocol):
    """An engine that has only some of the layers, with the KV buffers of these."""

    def hand_on(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        first_slot: int,
        hidden: HiddenStates,
    ) -> HiddenStates:
        """Run a stage that isn't the last as ``Engine.step`` does, on what the one before gave.

        Returns what the next stage takes, valid until the next step.
        """
        ...

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
        hidden: HiddenStates | None = None,
    ) -> FloatArray:
        """Run the last stage on what the one before gave; see Engine.step."""
        ...

    def embed(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        first_slot: int = 0,
        hidden: HiddenStates | None = None,
    ) -> FloatArray:
        """Run the last stage on what the one before gave; see EmbeddingEngine.embed."""
        ...


class HiddenBuffer:
    """Room for hidden states of up to ``tokens`` tokens, allocated once.

    ``shape`` is that of one token's. Pages that no step has reached take no memory.
    """

    def __init__(self, shape: Sequence[int], dtype: CacheDType, tokens: int) -> None:
        self._shape = tuple(shape)
        self._flat = aligned_zeros((tokens * math.prod(shape),), STORAGE[dtype])

    def view(self, n: int, sequence: int) -> npt.NDArray[Any]:
        """The start of the buffer as [n, sequence, ...]. Raises ValueError if it is too small."""
        shape = (n, sequence, *self._shape)
        return self._flat[: math.prod(shape)].reshape(shape)


class PipelineCache(KVCache):
    """The stages' KV buffers under one roof; each stays where its stage allocated it."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.slots, self.capacity = caches[0].slots, caches[0].capacity
        self.adapter_ids = caches[0].adapter_ids
        self.layers = tuple(layer for cache in caches for layer in cache.layers)
        self.buffers = {key: buffer for cache in caches for key, buffer in cache.buffers.items()}


class PipelineEngine(Closing):
    """Stages behind the interface of one engine, in the order of their layers.

    A slot is the same row of every stage's buffers, so that moving it, or taking tokens back by
    lowering ``past_lengths``, is for the generation loop as with one engine.
    """

    chooser = None

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)
        self.cache: KVCache = PipelineCache([stage.cache for stage in stages])
        self.vocab_size = stages[-1].vocab_size
        self.hidden_size = stages[-1].hidden_size
        self.weight_bytes = sum(stage.weight_bytes for stage in stages)

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        """Run ``input_ids`` [n, sequence] against n slots through every stage; see Engine.step.

        Returns logits [n, k, vocab]. Raises ValueError if the tokens don't fit into the cache.
        """
        hidden = self._before_last(input_ids, past_lengths, first_slot)
        return self._stages[-1].step(input_ids, past_lengths, logits_positions, first_slot, hidden)

    def embed(self, input_ids: IntArray, past_lengths: IntArray, first_slot: int = 0) -> FloatArray:
        """Run ``input_ids`` [n, sequence] through every stage; see EmbeddingEngine.embed."""
        hidden = self._before_last(input_ids, past_lengths, first_slot)
        return self._stages[-1].embed(input_ids, past_lengths, first_slot, hidden)

    def _before_last(
        self, input_ids: IntArray, past_lengths: IntArray, first_slot: int
    ) -> HiddenStates:
        """What the stages before the last make for it."""
        hidden: HiddenStates = {}
        for stage in self._stages[:-1]:
            hidden = stage.hand_on(input_ids, past_lengths, first_slot, hidden)
        return hidden

    def close(self) -> None:
        """Free every stage and its KV buffers."""
        for stage in self._stages:
            stage.close()
        self.cache.buffers.clear()
