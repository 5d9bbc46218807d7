"""The KV cache as the graph sees it: fixed buffers, written at each row's own length.

Implements transformers' cache interface, so that any model that calls ``past_key_values.update`` is
traced without code of its own.
"""

from typing import Any

import torch
from torch.onnx.ops import symbolic
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer


class BufferLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's key and value buffers, T [batch, kv_heads, max_sequence, head_dim]."""

    is_compileable = False
    is_sliding = False

    def __init__(self, key: torch.Tensor, value: torch.Tensor, past_lengths: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = key, value
        self.past_lengths = past_lengths
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers are graph inputs."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens behind each row's past and return the whole buffers."""
        self.keys = scatter_tokens(self.keys, key_states, self.past_lengths)
        self.values = scatter_tokens(self.values, value_states, self.past_lengths)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Always 0: rows differ, so no one number is right.

        Models that take ``position_ids`` use it only where they are missing; one that relies on it
        fails the parity gate.
        """
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Masks span the whole buffer, from its first position."""
        return self.keys.shape[2], 0

    def get_max_length(self) -> int:
        """Length of the buffers."""
        return self.keys.shape[2]


class BufferCache(Cache):  # type: ignore[misc]
    """All layers' buffers behind transformers' cache interface.

    ``buffers`` has one entry a cache layer: its key and value buffers, or None for a layer that
    keeps none of its own (it shares another layer's).
    """

    def __init__(
        self,
        buffers: list[tuple[torch.Tensor, torch.Tensor] | None],
        past_lengths: torch.Tensor,
    ) -> None:
        layers = [DummyLayer() if b is None else BufferLayer(*b, past_lengths) for b in buffers]
        super().__init__(layers=layers)

    @property
    def buffer_layers(self) -> list[BufferLayer]:
        """The layers that hold buffers, in the graph's order."""
        return [layer for layer in self.layers if isinstance(layer, BufferLayer)]


def scatter_tokens(
    buffer: torch.Tensor, update: torch.Tensor, write_indices: torch.Tensor
) -> torch.Tensor:
    """ONNX ``TensorScatter``: write ``update`` into ``buffer`` along axis 2, row by row."""
    return symbolic(
        "TensorScatter",
        (buffer, update, write_indices),
        {"axis": 2},
        dtype=buffer.dtype,
        shape=buffer.shape,
        version=24,
    )
