"""Attention of encoders as the graph sees it: an ONNX ``Attention`` node with a mask a layer.

Registered with transformers under the name ``ENCODER``, beside the decoders' attention function.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.onnx.ops import symbolic
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function

from exporter.attention import HARMLESS, UntraceableError, prepend_sink

ENCODER = "export_llm_encoder"

# Masks have windows and causality in them already, and other kernels have no say here.
_NEEDLESS = frozenset({"sliding_window", "is_causal", "deterministic"})


def attention(
    module: torch.nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in transformers' sense.

    ``query`` [batch, heads, sequence, head_dim], ``key`` and ``value`` [batch, kv_heads, sequence,
    head_dim]. Returns [batch, sequence, heads, head_dim]. Raises UntraceableError for an argument
    that would change the result and isn't understood.
    """
    unknown = {name for name, given in others.items() if given is not None}
    if unknown := unknown - HARMLESS - _NEEDLESS:
        raise UntraceableError(f"attention with {', '.join(sorted(unknown))}")
    if attention_mask is None:
        raise UntraceableError("attention that doesn't know what is padding")
    rows = attention_mask.shape[2]
    if isinstance(rows, int) and rows == 1:  # ONNX lets it broadcast; ONNX Runtime doesn't
        attention_mask = attention_mask.expand(-1, -1, query.shape[2], -1)
    if s_aux is not None:
        key, value, attention_mask = prepend_sink(key, value, attention_mask, s_aux, query.shape[2])
    attributes: dict[str, Any] = {"scale": float(scaling or query.shape[-1] ** -0.5)}
    if softcap:
        attributes["softcap"] = float(softcap)
    output = symbolic(
        "Attention",
        (query, key, value, attention_mask),
        attributes,
        dtype=query.dtype,
        shape=(*query.shape[:3], value.shape[-1]),
        version=24,
    )
    return output.transpose(1, 2).contiguous(), None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor] = bidirectional_mask_function,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Mask function in transformers' sense: True attends.

    Boolean [batch, 1, q_length, kv_length], or 1 in place of ``q_length`` if all see the same.
    """
    if attention_mask is None:
        raise UntraceableError("attention that doesn't know what is padding")
    padding = attention_mask[:, None, None, :].bool()
    if mask_function is bidirectional_mask_function:
        return padding
    rows, columns = torch.arange(q_length)[:, None], torch.arange(kv_length)[None, :]
    allowed = mask_function(
        torch.arange(batch_size)[:, None, None, None],
        torch.zeros((), dtype=torch.int64),
        rows[None, None],
        columns[None, None],
    )
    # Padding sees itself, where its window may have nothing else: a row that sees nothing is NaN,
    # and a weight of 0 times NaN is NaN in the rows that don't see it.
    return allowed & (padding | (rows == columns)[None, None])


def register() -> None:
    """Make ``ENCODER`` an attention implementation of transformers."""
    AttentionInterface.register(ENCODER, attention)
    AttentionMaskInterface.register(ENCODER, mask)
