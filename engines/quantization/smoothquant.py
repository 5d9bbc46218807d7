"""W8A8: linear layers with int8 weights and int8 activations (SmoothQuant, Xiao et al. 2022).

A few input channels of large magnitude would take the range of all others. So part of their
magnitude is moved into the weights, s = max|x|^alpha / max|w|^(1 - alpha) by channel, where what
produces the activations can be divided by s for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.linears import Linear, as_linear
from engines.quantization.activations import (
    HIGHEST,
    Activations,
    linears_by_source,
    quantize_source,
    rounded,
    watch_sources,
)
from engines.quantization.qdq import quantize_initializer
from engines.quantization.smoothing import can_fold, fold_input_scale, has_own_weight
from engines.quantization.weights import Floats, WeightScheme, round_to_nearest
from serving.engine import IntArray

ALPHAS = (0.0, 0.35, 0.5, 0.65, 0.8)
# Shares of the largest magnitude that the integers reach; what lies beyond saturates.
RANGES = (1.0, 0.8, 0.6)
_SCHEME = WeightScheme(8)


@dataclass(frozen=True)
class Choice:
    """How the layers that read one tensor were quantised, for the report."""

    weights: tuple[str, ...]
    alpha: float | None
    """None: not smoothed."""
    range: float
    error: float
    """Squared error of the layers' outputs on the sample, relative to their size."""


def quantize_w8a8(
    model: ir.Model,
    windows: Sequence[IntArray],
    workspace: Path,
    *,
    head: bool = False,
    inserts: bool = False,
) -> list[Choice]:
    """Quantise every linear layer's weight, by row, and its activations, by tensor, in place.

    ``model`` is a standard graph with float weights; ``windows`` and ``workspace`` as for
    ``observe``. Each group's alpha and range are those with the smallest error when magnitudes of
    half the windows meet the other half. The layer that gives the logits gets int8 weights alone
    unless ``head`` says otherwise. Where a scale can't be folded into what produces the
    activations, as in front of a residual, ``inserts`` lets a Mul apply it.
    """
    groups = list(linears_by_source(model))
    seen = watch_sources(model, groups, windows, workspace)
    choices = []
    for group in groups:
        source = group[0].source
        activations = seen.pop(source)
        if head or not any(_gives_logits(linear, model.graph) for linear in group):
            choices.append(_quantize_group(model, group, activations, inserts=inserts))
        _quantize_weights(model, group)
    return choices


def smoothing_scale(largest: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """The scale [in] of the paper's equation 4; channels that are never used keep theirs.

    ``largest`` is max|x| [in]; ``weights`` [out, in] are those of the layers that share x.
    """
    weight = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
    used = (largest > 0) & (weight > 0)
    scale = np.where(used, largest, 1) ** alpha / np.where(used, weight, 1) ** (1 - alpha)
    return scale.astype(np.float32)


def _quantize_group(
    model: ir.Model, group: list[Linear], activations: Activations, *, inserts: bool
) -> Choice:
    """Smooth the layers' weights if that helps and quantise what they read."""
    weights = [linear.array() for linear in group]
    tokens = activations.tokens()
    expected = [tokens @ weight.T for weight in weights]
    size = sum(float(np.square(e, dtype=np.float64).sum()) for e in expected) or 1.0
    candidates: list[tuple[float, float | None, float]] = []
    for alpha in (None, *ALPHAS) if _can_smooth(group, inserts=inserts) else (None,):
        smooth = _smooth(activations.fitted, weights, alpha)
        integers = [round_to_nearest(w * smooth, _SCHEME).dequantized() for w in weights]
        for part in RANGES:
            got = rounded(tokens / smooth, _scale(activations.fitted, smooth, part))
            error = sum(
                float(np.square(got @ w.T - e, dtype=np.float64).sum())
                for w, e in zip(integers, expected, strict=True)
            )
            candidates.append((error / size, alpha, part))
    error, alpha, part = min(candidates, key=lambda candidate: candidate[0])
    smooth = _smooth(activations.largest, weights, alpha)
    if alpha is not None:
        fold_input_scale(model, group, smooth)
    quantize_source(model.graph, group, _scale(activations.largest, smooth, part))
    return Choice(tuple(linear.name for linear in group), alpha, part, error)


def _scale(largest: Floats, smooth: Floats, part: float) -> float:
    """The scale of activations divided by ``smooth``."""
    return part * (float((largest / smooth).max()) or 1.0) / HIGHEST


def _smooth(largest: Floats, weights: Sequence[Floats], alpha: float | None) -> Floats:
    return np.ones_like(largest) if alpha is None else smoothing_scale(largest, weights, alpha)


def _can_smooth(group: Sequence[Linear], *, inserts: bool) -> bool:
    return (inserts or can_fold(group)) and all(has_own_weight(linear) for linear in group)


def _quantize_weights(model: ir.Model, group: Sequence[Linear]) -> None:
    for old in group:
        linear = as_linear(old.matmul)  # smoothing may have given it a constant of its own
        if linear is not None and linear.dequantize is None:
            quantized = round_to_nearest(linear.array(), _SCHEME)
            quantize_initializer(model, linear.weight, quantized, transposed=linear.transposed)


def _gives_logits(linear: Linear, graph: ir.Graph) -> bool:
    """Whether the logits come from this layer, maybe scaled, capped or with a bias."""
    logits = graph.outputs[0]
    waiting = [linear.matmul.outputs[0]]
    while waiting:
        value = waiting.pop()
        if value is logits:
            return True
        for use in value.uses():
            if use.node.op_type in ("MatMul", "Attention", "TensorScatter"):
                return False
            waiting += use.node.outputs
    return False
