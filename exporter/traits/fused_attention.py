"""Models that call PyTorch's fused attention themselves, past transformers' attention interface."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from exporter.attention import attention


class FusedAttention(TorchFunctionMode):
    """Turns each call of ``scaled_dot_product_attention`` into one Attention node."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch that the model calls."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> torch.Tensor:
    result, _ = attention(
        torch.nn.Module(), query, key, value, attn_mask, scaling=scale, is_causal=is_causal
    )
    return result.transpose(1, 2)
