"""Cross-attention's keys and values as the two graphs see them.

Both stand in for the cross part of transformers' cache: the encoder graph records what the decoder
layers would keep of a source, the decoder graph gives them what was kept.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

Pair = tuple[torch.Tensor, torch.Tensor]


class SourceLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's keys and values of the source, T [batch, kv_heads, source, head_dim]."""

    is_compileable = False
    is_sliding = False

    def __init__(self, given: Pair | None = None) -> None:
        super().__init__()
        if given is not None:
            self.keys, self.values = given
        self.is_initialized = given is not None
        self.is_given = given is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: there are no buffers."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> Pair:
        """Keep a source's keys and values; what was given stays."""
        if not self.is_given:
            self.keys, self.values = key_states, value_states
            self.is_initialized = True
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Not 0 where keys and values are there, which is all that transformers asks."""
        return int(self.is_initialized)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Masks span the whole source."""
        return (self.keys.shape[2] if self.is_initialized else 0), 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class SourceCache(Cache):  # type: ignore[misc]
    """Cross-attention's keys and values of all layers, to be recorded or ``given``."""

    def __init__(self, given: list[Pair] | None = None) -> None:
        if given is None:
            super().__init__(layer_class_to_replicate=SourceLayer)
        else:
            super().__init__(layers=[SourceLayer(pair) for pair in given])

    @property
    def pairs(self) -> list[Pair]:
        """Every layer's keys and values, in order."""
        return [(layer.keys, layer.values) for layer in self.layers]
