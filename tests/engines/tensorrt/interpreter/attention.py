"""Attention, the KV cache and the rotary embedding.

NvInfer.h of TensorRT 11 says of ``CausalMaskKind``: "kUPPER_LEFT: Diagonal anchored at top-left
corner (j <= i)", "kLOWER_RIGHT: Diagonal anchored at bottom-right corner (j <= i + (s_kv - s_q))",
and of the key-value lengths of padded buffers: "contains per-batch lengths with shape [batchSize].
Each element must be <= the sequence length dimension of the KV tensor. If not set, the sequence
length dimension of the KV tensor is used for all batches." What s_kv is where lengths are set it
doesn't say. Here, as in ONNX's Attention, it is the row's length: see ``key_ends``.
"""

from typing import Any

import numpy as np

from tests.engines.tensorrt.interpreter.arithmetic import softmax_along
from tests.engines.tensorrt.interpreter.values import Array, Evaluators


def attention(
    layer: Any,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    normalization_scale: Array | None = None,
    query_lengths: Array | None = None,
    key_value_lengths: Array | None = None,
) -> Array:
    """softmax(query @ key^T, where seen) @ value; query [batch, heads, s_q, dim], as is the result.

    Nothing is scaled: TensorRT wants the scale in the query. Key and value heads are shared by as
    many consecutive query heads.
    """
    asked = layer.attention
    forms = {asked.query_form.name, asked.key_value_form.name}
    if forms != {"PADDED_BHND"} or asked.norm_op.name != "SOFTMAX":
        raise NotImplementedError(f"attention with {forms} and {asked.norm_op.name}")
    if normalization_scale is not None or query_lengths is not None:
        raise NotImplementedError("attention with quantised weights or query lengths")
    causal = asked.causal_kind.name
    if causal != "NONE" and mask is not None:
        raise ValueError("TensorRT refuses a mask beside causal attention")
    shared = query.shape[1] // key.shape[1]
    scores = query @ key.repeat(shared, axis=1).swapaxes(-1, -2)
    seen = seen_keys(causal, query.shape[2], key.shape[2], key_value_lengths)
    if mask is not None and mask.dtype == np.bool_:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask
    weights = softmax_along(np.where(seen, scores, np.float32(-np.inf)), (-1,))
    return weights @ value.repeat(shared, axis=1)


def seen_keys(causal: str, s_q: int, s_kv: int, lengths: Array | None) -> Array:
    """Boolean [batch or 1, 1, s_q, s_kv]: which keys a query sees."""
    i, j = np.arange(s_q)[:, None], np.arange(s_kv)
    if lengths is not None and lengths.max() > s_kv:
        raise ValueError(f"KV lengths up to {lengths.max()} in buffers of {s_kv}")
    valid = np.array([s_kv]) if lengths is None else lengths
    seen = j < valid[:, None, None, None]
    if causal == "UPPER_LEFT":
        seen = seen & (j <= i)
    elif causal == "LOWER_RIGHT":
        seen = seen & (j <= i + key_ends(valid, s_kv)[:, None, None, None] - s_q)
    return np.broadcast_to(seen, (len(valid), 1, s_q, s_kv))


def key_ends(lengths: Array, s_kv: int) -> Array:  # noqa: ARG001
    """Where each row's lower right corner is: at its length, not at the buffer's end ``s_kv``."""
    return lengths


def attention_output(_: Any, value: Array) -> Array:
    return value


def kv_cache_update(layer: Any, cache: Array, update: Array, write_indices: Array) -> Array:
    """output[b, :, write_indices[b] + s] = update[b, :, s], in the cache's own memory."""
    if layer.cache_mode.name != "LINEAR" or layer.update_form.name != "PADDED_BHND":
        raise NotImplementedError(f"an update with {layer.cache_mode} and {layer.update_form}")
    tokens, capacity = update.shape[2], cache.shape[2]
    if write_indices.min() < 0 or write_indices.max() + tokens > capacity:
        raise IndexError(f"{tokens} tokens written at {write_indices} into {capacity}")
    for row, first in enumerate(write_indices):
        cache[row, :, first : first + tokens] = update[row]
    return cache


def rotary_embedding(layer: Any, value: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs of [batch, heads, sequence, dim] by cos and sin [batch, sequence, pairs].

    Pairs are of neighbours if the layer is interleaved, else of the two halves of what is rotated;
    the rest of ``dim`` stays.
    """
    rotated = layer.rotary_embedding_dim or value.shape[-1]
    if cos.shape != sin.shape or cos.shape[-1] != rotated // 2:
        raise ValueError(f"cosines of shape {cos.shape} for {rotated} numbers")
    cos, sin = cos[:, None], sin[:, None]
    result = value.copy()
    halves = [slice(rotated // 2), slice(rotated // 2, rotated)]
    neighbours = [slice(0, rotated, 2), slice(1, rotated, 2)]
    first, second = neighbours if layer.interleaved else halves
    result[..., first] = value[..., first] * cos - value[..., second] * sin
    result[..., second] = value[..., second] * cos + value[..., first] * sin
    return result


EVALUATORS: Evaluators = {
    # All operands are the input layer's, and the result is given there.
    "ATTENTION_INPUT": ("IAttentionInputLayer", attention),
    "ATTENTION_OUTPUT": ("IAttentionOutputLayer", attention_output),
    "KV_CACHE_UPDATE": ("IKVCacheUpdateLayer", kv_cache_update),
    "ROTARY_EMBEDDING": ("IRotaryEmbeddingLayer", rotary_embedding),
}
