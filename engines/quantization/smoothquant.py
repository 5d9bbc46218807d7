"""W8A8: linear layers with int8 weights and int8 activations (SmoothQuant, Xiao et al. 2022).

A few input channels of large magnitude would take the range of all others. So part of their
magnitude is moved into the weights, s = max|x|^alpha / max|w|^(1 - alpha) by channel, where what
produces the activations can be divided by s for nothing. Weights are rounded by GPTQ. Where one
token in many has values far beyond all others, no alpha helps: there activations stay float.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.calibration import collect_in_parts
from engines.linears import Linear, as_linear
from engines.quantization.activations import (
    HIGHEST,
    Activations,
    linears_by_source,
    quantize_source,
    rounded,
    watch_sources,
)
from engines.quantization.gptq import Gptq
from engines.quantization.qdq import quantize_initializer
from engines.quantization.smoothing import can_fold, fold_input_scale, has_own_weight
from engines.quantization.weight_only import check_statistics, second_moment
from engines.quantization.weights import Floats, QuantizedWeight, WeightScheme, round_to_nearest
from serving.engine import IntArray

ALPHAS = (0.0, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
# Shares of the largest magnitude that the integers reach; what lies beyond saturates.
RANGES = (1.0, 0.8, 0.6)
LARGEST_ERROR = 0.003
"""Squared error of a token's outputs, relative to their size, beyond which activations stay float.

Most layers have a tenth of it.
"""
FLOAT_SHARE = 0.25
"""Of all multiplications, those at most that keep float activations: what is fast is int8."""
_LEAST_TOKEN = 0.01  # of the median token's size: outputs near zero are no measure
_SCHEME = WeightScheme(8)


@dataclass(frozen=True)
class Choice:
    """How the layers that read one tensor were quantised, for the report."""

    weights: tuple[str, ...]
    alpha: float | None
    """None: not smoothed."""
    range: float
    error: float
    """Squared error of the layers' outputs relative to their size, the mean over the sample."""
    is_float: bool = False
    """Whether the activations stayed float, and were not smoothed either."""


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
    half the windows meet the other half; what ``keep_float`` names has float activations. The
    layer that gives the logits gets int8 weights alone unless ``head`` says otherwise. Where a
    scale can't be folded into what produces the activations, as in front of a residual,
    ``inserts`` lets a Mul apply it. Raises UserError for activations that aren't finite.
    """
    groups = {_source(group): group for group in linears_by_source(model)}
    seen = watch_sources(model, list(groups.values()), windows, workspace)
    choices = {
        source: _choose(group, seen[group[0].source], inserts=inserts)
        for source, group in groups.items()
        if head or not any(_gives_logits(linear, model.graph) for linear in group)
    }
    sizes = {
        source: sum(each.inputs * each.outputs for each in groups[source]) for source in groups
    }
    for source in keep_float({source: choices[source].error for source in choices}, sizes):
        choices[source] = replace(choices[source], alpha=None, is_float=True)
    # What other layers share has no inputs of its own to be fitted to.
    fitted = {
        groups[source][0].name: source
        for source in choices
        if all(map(has_own_weight, groups[source]))
    }
    text = collect_in_parts(model.clone(), windows, workspace, weights=fitted.keys())
    for statistics in text:
        for name, inputs in statistics.items():
            source = fitted[name]
            group = groups[source]
            smooth = _quantize_activations(model, group, seen[group[0].source], choices[source])
            check_statistics(name, inputs)
            moment = second_moment(inputs) / np.outer(smooth, smooth)
            _round(model, group, Gptq(moment, activation_order=True).quantize)
    for source in groups.keys() - fitted.values():
        group = groups[source]
        if source in choices:
            _quantize_activations(model, group, seen[group[0].source], choices[source])
        _round(model, group, round_to_nearest)
    return list(choices.values())


def keep_float(errors: Mapping[str, float], sizes: Mapping[str, int]) -> list[str]:
    """The layers with the largest errors above the limit, as far as the share of sizes allows."""
    left = FLOAT_SHARE * sum(sizes.values())
    kept = []
    for name in sorted(errors, key=lambda name: -errors[name]):
        if errors[name] > LARGEST_ERROR and sizes[name] <= left:
            kept.append(name)
            left -= sizes[name]
    return kept


def smoothing_scale(largest: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """The scale [in] of the paper's equation 4; channels that are never used keep theirs.

    ``largest`` is max|x| [in]; ``weights`` [out, in] are those of the layers that share x.
    """
    weight = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
    used = (largest > 0) & (weight > 0)
    scale = np.where(used, largest, 1) ** alpha / np.where(used, weight, 1) ** (1 - alpha)
    return scale.astype(np.float32)


def _choose(group: Sequence[Linear], activations: Activations, *, inserts: bool) -> Choice:
    """The alpha and range that cost the layers' outputs the least."""
    weights = [linear.array() for linear in group]
    tokens = activations.tokens()
    expected = np.concatenate([tokens @ weight.T for weight in weights], axis=1)
    sizes = np.square(expected, dtype=np.float64).sum(axis=1)
    sizes = np.maximum(sizes, _LEAST_TOKEN * np.median(sizes)) + np.finfo(np.float32).tiny
    candidates: list[tuple[float, float | None, float]] = []
    for alpha in (None, *ALPHAS) if _can_smooth(group, inserts=inserts) else (None,):
        smooth = _smooth(activations.fitted, weights, alpha)
        integers = [round_to_nearest(w * smooth, _SCHEME).dequantized() for w in weights]
        for part in RANGES:
            got = rounded(tokens / smooth, _scale(activations.fitted, smooth, part))
            errors = np.concatenate([got @ w.T for w in integers], axis=1) - expected
            # Norms give every token the same weight, however large one of them is.
            relative = np.square(errors, dtype=np.float64).sum(axis=1) / sizes
            candidates.append((float(relative.mean()), alpha, part))
    error, alpha, part = min(candidates, key=lambda candidate: candidate[0])
    return Choice(tuple(linear.name for linear in group), alpha, part, error)


def _quantize_activations(
    model: ir.Model, group: Sequence[Linear], activations: Activations, choice: Choice
) -> Floats:
    """Smooth the layers' weights and quantise what they read; returns the smoothing scale [in]."""
    if choice.is_float:
        return np.ones_like(activations.largest)
    weights = [linear.array() for linear in group]
    smooth = _smooth(activations.largest, weights, choice.alpha)
    if choice.alpha is not None:
        fold_input_scale(model, group, smooth)
    scale = _scale(activations.largest, smooth, choice.range)
    quantize_source(model.graph, group, scale)
    return smooth


def _scale(largest: Floats, smooth: Floats, part: float) -> float:
    """The scale of activations divided by ``smooth``."""
    return part * (float((largest / smooth).max()) or 1.0) / HIGHEST


def _smooth(largest: Floats, weights: Sequence[Floats], alpha: float | None) -> Floats:
    return np.ones_like(largest) if alpha is None else smoothing_scale(largest, weights, alpha)


def _can_smooth(group: Sequence[Linear], *, inserts: bool) -> bool:
    return (inserts or can_fold(group)) and all(has_own_weight(linear) for linear in group)


def _round(
    model: ir.Model,
    group: Sequence[Linear],
    quantizer: Callable[[Floats, WeightScheme], QuantizedWeight],
) -> None:
    for old in group:
        linear = as_linear(old.matmul)  # smoothing may have given it a constant of its own
        if linear is not None and linear.dequantize is None:
            quantized = quantizer(np.ascontiguousarray(linear.array()), _SCHEME)
            quantize_initializer(model, linear.weight, quantized, transposed=linear.transposed)


def _source(group: Sequence[Linear]) -> str:
    name = group[0].source.name
    assert name is not None
    return name


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
