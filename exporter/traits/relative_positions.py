"""Relative position bias (T5's family): what a module computes of lengths, computed row by row.

The module counts queries on from the cache's length, which differs from row to row here. Behind a
cache the bias depends on the distance from a query back to a key alone. So the module's own code is
asked for the bias of every distance once, and rows look theirs up.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_COMPUTE = "compute_bias"
_NAME = "position_bias"


@contextmanager
def biased_by_row(decoder: nn.Module, past_lengths: torch.Tensor) -> Iterator[None]:
    """Have each row's queries begin at its own past length, int64 [batch].

    Cross-attention, which such a model biases with zeros for every key, gets a single zero.
    """
    with ExitStack() as restore:
        for module in decoder.modules():
            if not hasattr(module, _COMPUTE):
                continue
            if getattr(module, "has_relative_attention_bias", False):
                own = getattr(module, _COMPUTE)
                setattr(module, _COMPUTE, _row_by_row(own, past_lengths))
                restore.callback(delattr, module, _COMPUTE)
            hook = module.register_forward_pre_hook(_without_zeros, with_kwargs=True)
            restore.callback(hook.remove)
        yield


def _row_by_row(own: Callable[..., torch.Tensor], past_lengths: torch.Tensor) -> Any:
    def compute_bias(query_length: int, key_length: int, *_: Any, **__: Any) -> torch.Tensor:
        """Bias [batch, heads, query_length, key_length]; keys ahead have that of distance 0."""
        of_distance = own(key_length, 1)[0, :, :, 0].transpose(0, 1)
        queries = past_lengths[:, None, None] + torch.arange(query_length)[None, :, None]
        distances = (queries - torch.arange(key_length)[None, None, :]).clamp(min=0)
        # What lies beyond a buffer's end is padding.
        distances = torch.minimum(distances, torch.tensor(key_length - 1))
        return nn.functional.embedding(distances, of_distance).permute(0, 3, 1, 2)

    return compute_bias


def _without_zeros(
    module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    is_cross = keywords.get("key_value_states") is not None
    if is_cross and keywords.get(_NAME) is None:
        weight = next(module.parameters())
        keywords = keywords | {_NAME: torch.zeros(1, 1, 1, 1, dtype=weight.dtype)}
    return arguments, keywords
