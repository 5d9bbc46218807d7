"""Carrying out a recipe on a graph."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from engines.quantization.kv_cache import largest_entries, quantize_kv_cache
from engines.quantization.mixed_precision import assign_bits, measure_sensitivities, weight_sizes
from engines.quantization.recipe import Recipe
from engines.quantization.smoothquant import Choice, quantize_w8a8
from engines.quantization.weight_only import (
    CalibrationText,
    fitting_group_sizes,
    quantizable_weights,
    quantize_weights,
)
from engines.quantization.weights import WeightScheme
from serving.engine import IntArray

# Windows that sensitivities are measured on: the text runs once for each weight.
_SENSITIVITY_WINDOWS = 2


@dataclass(frozen=True)
class QuantizationReport:
    """What a recipe came to."""

    schemes: dict[str, WeightScheme] = field(default_factory=dict)
    """Of each quantised weight, by its name."""
    sensitivities: dict[str, float] = field(default_factory=dict)
    """KL divergence in nats a token, of 4 bits for one weight alone, where it was measured."""
    smoothing: tuple[Choice, ...] = ()
    """How the layers of each source were smoothed, with quantised activations."""


def quantize(
    model: ir.Model,
    recipe: Recipe,
    windows: Sequence[IntArray],
    scratch: Path,
    *,
    is_encoder: bool = False,
    head: bool = False,
) -> QuantizationReport:
    """Quantise a standard graph with float weights in place.

    With ``head``, the layer that gives the first output gets quantised activations too. In an
    encoder, activations are smoothed by a product where nothing else can do it: norms come before
    the residual there, and a product over many rows costs little.

    ``windows`` are rows of tokens, int64 [n], which a recipe that needs text runs the graph on;
    ``scratch`` is a directory for its weights meanwhile. Raises UserError for what the weights
    don't allow.
    """
    largest = None
    if recipe.kv_cache:
        with TemporaryDirectory(dir=scratch) as workspace:
            largest = largest_entries(model, windows, Path(workspace))
    report = QuantizationReport()
    if recipe.activations:
        report = _quantize_activations_too(model, windows, scratch, head=head, inserts=is_encoder)
    elif recipe.bits is not None:
        report = _quantize_weights(model, recipe, windows, scratch)
    if largest is not None:
        quantize_kv_cache(model, largest)
    return report


def _quantize_activations_too(
    model: ir.Model, windows: Sequence[IntArray], scratch: Path, *, head: bool, inserts: bool
) -> QuantizationReport:
    schemes = dict.fromkeys(quantizable_weights(model), WeightScheme(8))
    with TemporaryDirectory(dir=scratch) as workspace:
        choices = quantize_w8a8(model, windows, Path(workspace), head=head, inserts=inserts)
    left = schemes.keys() & model.graph.initializers.keys()  # an embedding of its own
    quantize_weights(model, {name: schemes[name] for name in left})
    return QuantizationReport(schemes, smoothing=tuple(choices))


def _quantize_weights(
    model: ir.Model, recipe: Recipe, windows: Sequence[IntArray], scratch: Path
) -> QuantizationReport:
    inputs = quantizable_weights(model)
    sensitivities: dict[str, float] = {}
    bits = dict.fromkeys(inputs, 4 if recipe.bits == 4 else 8)
    if recipe.is_mixed:
        assert recipe.bits is not None
        low = _fitting(recipe, 4, list(inputs.values()))
        with TemporaryDirectory(dir=scratch) as workspace:
            sensitivities = measure_sensitivities(
                model, low, windows[:_SENSITIVITY_WINDOWS], Path(workspace)
            )
        bits |= assign_bits(sensitivities, weight_sizes(model), recipe.bits)
    schemes = {name: _fitting(recipe, bits[name], [count]) for name, count in inputs.items()}
    with TemporaryDirectory(dir=scratch) as workspace:
        text = CalibrationText(windows, Path(workspace))
        quantize_weights(model, schemes, recipe.weight_method, text)
    return QuantizationReport(schemes, sensitivities)


def _fitting(recipe: Recipe, bits: int, inputs: Sequence[int]) -> WeightScheme:
    """The recipe's scheme, with smaller groups than the default where that doesn't divide."""
    scheme = recipe.scheme(4 if bits == 4 else 8)
    if recipe.group_size is not None or scheme.group_size is None:
        return scheme
    fitting = [size for size in fitting_group_sizes(inputs) if size <= scheme.group_size]
    if not fitting:
        return recipe.scheme(8)
    return WeightScheme(scheme.bits, max(fitting), scheme.symmetric)
