"""Attention as the graph sees it: one ONNX ``Attention`` node a layer.

Registers an attention function and a mask function with transformers under the name ``EXPORT``. A
model that calls attention through that interface is traced to the standard operator: a plain causal
mask becomes ``is_causal`` with the rows' lengths, any other mask an explicit input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.onnx.ops import symbolic
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from exporter.traits.states import INDEXED
from serving.contract import WINDOW_METADATA

EXPORT = "export_llm"

# Keyword arguments of attention functions that change nothing at inference in this graph.
HARMLESS = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "seq_idx",
        "target_dtype",
        "token_type_ids",
        "use_cache",
    }
)


class UntraceableError(Exception):
    """The model asks its attention for something that the graph can't express."""


@dataclass
class AttentionTrace:
    """What attention and mask functions need to know of the trace they run in."""

    past_lengths: torch.Tensor
    kv_lengths: torch.Tensor
    # A mask function's result and the window it stands for: engines may have a window kernel.
    windows: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    causal: bool = False
    """Whether the model asked for a plain causal mask, which is None here."""
    has_padding: bool = False
    """Whether rows have padding, which ``attention_mask`` of a mask function says."""

    def window_of(self, mask: torch.Tensor) -> int | None:
        """The sliding window that a mask stands for, where it is exactly one."""
        return next((window for known, window in self.windows if known is mask), None)


_current: ContextVar[AttentionTrace] = ContextVar("attention_trace")


@contextmanager
def tracing_attention(trace: AttentionTrace) -> Iterator[None]:
    """Make ``trace`` the one that attention functions see."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in transformers' sense, over key and value buffers.

    ``query`` [batch, heads, sequence, head_dim], ``key`` and ``value`` [batch, kv_heads,
    max_sequence, head_dim]. Returns [batch, sequence, heads, head_dim]. Raises UntraceableError for
    an argument that would change the result and isn't understood.
    """
    unknown = {name for name, given in others.items() if given is not None} - HARMLESS
    if "indices" in unknown:
        raise UntraceableError(INDEXED)
    if unknown:
        raise UntraceableError(f"attention with {', '.join(sorted(unknown))}")
    trace = _current.get()
    attributes: dict[str, Any] = {"scale": float(scaling or query.shape[-1] ** -0.5)}
    if softcap:
        attributes["softcap"] = float(softcap)
    metadata: dict[str, str] = {}
    lengths = None
    if position_bias is not None:
        attention_mask = biased(position_bias, query, key, attention_mask)
    if s_aux is not None:
        key, value, attention_mask = prepend_sink(key, value, attention_mask, s_aux, query.shape[2])
    elif attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if not causal and (trace.has_padding or not trace.causal):
            raise UntraceableError("attention that isn't causal")
        if sliding_window is not None:
            raise UntraceableError("a sliding window without its mask")
        attributes["is_causal"] = 1
        lengths = trace.kv_lengths
    elif (window := trace.window_of(attention_mask)) is not None:
        metadata[WINDOW_METADATA] = str(window)
    output = symbolic(
        "Attention",
        (query, key, value, attention_mask, None, None, lengths),
        attributes,
        dtype=query.dtype,
        shape=(*query.shape[:3], value.shape[-1]),
        version=24,
        metadata_props=metadata,
    )
    return output.transpose(1, 2).contiguous(), None


def biased(
    bias: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """What is added to scores: ``bias`` where a mask (None: the causal one) lets attend.

    ``bias`` is of a shape that broadcasts to [batch, heads, query_length, kv_length].
    """
    if attention_mask is None:
        attention_mask = explicit_mask(
            causal_mask_function, key.shape[0], query.shape[2], key.shape[2]
        )
    if attention_mask.is_floating_point():
        return bias + attention_mask
    return torch.where(attention_mask, bias, torch.finfo(query.dtype).min).to(query.dtype)


def prepend_sink(
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sinks: torch.Tensor,
    query_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Express attention sinks (a learned logit a head that takes weight and gives no value).

    One more key of zeros in front, whose score the mask sets to the sink's logit, with a value of
    zeros.
    """
    batch, _, length, _ = key.shape
    if attention_mask is None:
        attention_mask = explicit_mask(causal_mask_function, batch, query_length, length)
    heads = sinks.shape[0]
    lowest = torch.finfo(key.dtype).min
    bias = torch.where(attention_mask, 0.0, lowest).to(key.dtype)
    bias = bias.expand(batch, heads, query_length, length)
    sink = sinks.to(key.dtype).reshape(1, heads, 1, 1).expand(batch, heads, query_length, 1)

    def with_zero(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(tensor[:, :, :1]), tensor], dim=2)

    return with_zero(key), with_zero(value), torch.cat([sink, bias], dim=-1)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor | None:
    """Mask function in transformers' sense: boolean [batch, 1, q_length, kv_length], True attends.

    None stands for the plain causal mask. Where rows have padding, it is where ``attention_mask``
    [batch, kv_length] is False; else that is ignored.
    """
    if mask_function is causal_mask_function and allow_is_causal_skip:
        _current.get().causal = True
        return None
    result = explicit_mask(mask_function, batch_size, q_length, kv_length, attention_mask)
    if local_size is not None and _is_window(mask_function, local_size):
        _current.get().windows.append((result, local_size))
    return result


def explicit_mask(
    mask_function: Callable[..., torch.Tensor],
    batch: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Evaluate a mask function over the whole buffer, each row from its own past length.

    Where rows have padding, nothing attends to what ``attention_mask`` [batch, kv_length] hides.
    """
    trace = _current.get()
    first = trace.past_lengths[:, None, None, None]
    allowed = mask_function(
        torch.arange(batch)[:, None, None, None],
        torch.zeros((), dtype=torch.int64),
        torch.arange(q_length)[None, None, :, None] + first,
        torch.arange(kv_length)[None, None, None, :],
    )
    if trace.has_padding and attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, :].bool()
    return allowed


def _is_window(mask_function: Callable[..., torch.Tensor], window: int) -> bool:
    """Whether a mask function is exactly "causal, and fewer than ``window`` tokens back"."""
    with _disable_current_modes():
        zero = torch.zeros((), dtype=torch.int64)
        query = torch.tensor([0, window - 1, window, window + 1, 2 * window, 3 * window + 5])[
            :, None
        ]
        keys = torch.arange(4 * window + 8)[None, :]
        expected = (keys <= query) & (keys > query - window)
        try:
            got = mask_function(zero, zero, query, keys)
            return torch.equal(got.expand_as(expected), expected)
        except (RuntimeError, AssertionError, TypeError, IndexError):
            return False  # it closes over traced tensors, as chunked attention does


def additive_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    dtype: torch.dtype = torch.float32,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Mask function in transformers' sense: 0 attends, the lowest number of ``dtype`` doesn't."""
    allowed = explicit_mask(mask_function, batch_size, q_length, kv_length, attention_mask)
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


def register() -> None:
    """Make ``EXPORT`` an attention implementation of transformers."""
    AttentionInterface.register(EXPORT, attention)
    AttentionMaskInterface.register(EXPORT, mask)


@contextmanager
def additive_masks(implementations: set[str]) -> Iterator[None]:
    """Have models with attention code of their own build their masks with ``additive_mask``.

    ``implementations`` names the attention implementations that they keep.
    """
    for name in implementations:
        ALL_MASK_ATTENTION_FUNCTIONS[name] = additive_mask
    try:
        yield
    finally:
        for name in implementations:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]
