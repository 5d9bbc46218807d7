"""Mixture of experts: an experts implementation that traces to standard operators.

Transformers' own implementations sort tokens by expert (``grouped_mm`` has no ONNX form) or loop
over data-dependent counts. This one computes every expert for every token and weights the results,
so it costs experts / top_k times the arithmetic, and is exact.
"""

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from exporter.attention import EXPORT


def all_experts(
    self: Any,  # a module with experts
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Experts function in transformers' sense.

    ``hidden_states`` [tokens, hidden], ``top_k_index`` int64 and ``top_k_weights`` [tokens, top_k].
    Returns [tokens, hidden].
    """
    rising = self.gate_up_proj if self.has_gate else self.up_proj
    inner = _per_expert(self, hidden_states[None], rising)
    if self.has_bias:
        inner = inner + (self.gate_up_proj_bias if self.has_gate else self.up_proj_bias)[:, None]
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    outer = _per_expert(self, inner, self.down_proj)
    if self.has_bias:
        outer = outer + self.down_proj_bias[:, None]
    if self.has_post_expert_norm:
        outer = self.post_expert_norm(outer)
    shares = torch.zeros(
        hidden_states.shape[0], rising.shape[0], dtype=top_k_weights.dtype
    ).scatter(1, top_k_index, top_k_weights)
    return (outer * shares.transpose(0, 1)[:, :, None]).sum(dim=0).to(hidden_states.dtype)


def _per_expert(module: Any, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply [experts or 1, tokens, in] by each expert's weight: [experts, tokens, out]."""
    return tokens @ (weight if module.is_transposed else weight.transpose(1, 2))


def register_experts() -> None:
    """Make ``EXPORT`` an experts implementation of transformers."""
    ALL_EXPERTS_FUNCTIONS.register(EXPORT, all_experts)
