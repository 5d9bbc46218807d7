"""Quantising the weights of a graph, and nothing else: round-to-nearest, AWQ or GPTQ."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.calibration import SECOND_MOMENTS_BUDGET, InputStatistics, collect_in_parts
from engines.linears import Linear, find_linears
from engines.passes.sizes import static_size
from engines.quantization.awq import search_scale
from engines.quantization.clipping import round_clipped
from engines.quantization.gptq import Gptq
from engines.quantization.qdq import quantize_initializer
from engines.quantization.smoothing import can_fold, fold_input_scale, has_own_weight
from engines.quantization.weights import (
    GROUP_SIZES,
    Floats,
    Method,
    QuantizedWeight,
    WeightScheme,
    round_to_nearest,
)
from serving.contract import INPUT_IDS
from serving.engine import IntArray
from serving.errors import UserError

Schemes = Mapping[str, WeightScheme]
_Quantizer = Callable[[Floats, WeightScheme], QuantizedWeight]

_CHUNK = 1 << 22  # numbers of a weight that are quantised at once


@dataclass(frozen=True)
class CalibrationText:
    """Rows of tokens, int64 [n] each, and an empty directory for the graph that runs on them."""

    windows: Sequence[IntArray]
    workspace: Path
    budget: int = SECOND_MOMENTS_BUDGET
    """Bytes of second moments that may be in memory at once."""


def quantizable_weights(model: ir.Model) -> dict[str, int]:
    """The input channels of each weight that ``quantize_weights`` takes, by the weight's name.

    These are the weights of linear layers and the token embedding.
    """
    inputs = {linear.name: linear.inputs for linear in find_linears(model)}
    for name, table in _token_embeddings(model).items():
        inputs.setdefault(name, static_size(table, 1))
    return inputs


def vocabulary_weights(model: ir.Model) -> set[str]:
    """The names of the token embedding and of the layer that computes the logits."""
    vocabulary = static_size(model.graph.outputs[0], 2)
    heads = {linear.name for linear in find_linears(model) if linear.outputs == vocabulary}
    return heads | _token_embeddings(model).keys()


def check_group_sizes(inputs: Mapping[str, int], schemes: Schemes) -> None:
    """Check that groups divide the ``inputs`` of every weight that has a scheme, both by name.

    Raises UserError, naming the first weight where they don't.
    """
    for name, scheme in schemes.items():
        if scheme.group_size is not None and inputs[name] % scheme.group_size:
            fitting = fitting_group_sizes([inputs[other] for other in schemes])
            sizes = ", ".join(map(str, fitting))
            advice = f"choose of {sizes}" if fitting else "quantise to 8 bits without groups"
            raise UserError(
                f"A group size of {scheme.group_size} doesn't divide the {inputs[name]} inputs of "
                f"{name}: {advice}."
            )


def fitting_group_sizes(inputs: Collection[int]) -> list[int]:
    """The group sizes that divide all of these numbers of input channels."""
    return [size for size in GROUP_SIZES if all(count % size == 0 for count in inputs)]


def quantize_weights(
    model: ir.Model,
    schemes: Schemes,
    method: Method = "round-to-nearest",
    text: CalibrationText | None = None,
) -> None:
    """Quantise the weights that ``schemes`` names, in place and in standard Q/DQ form.

    ``model`` is a standard graph with float weights; AWQ and GPTQ need ``text``. A weight that
    layers share, or a layer and the embedding, is stored once. Raises UserError, before anything is
    changed, for a group size that doesn't divide, and for a weight that isn't finite; ValueError
    for a name that isn't one of ``quantizable_weights``.
    """
    inputs = quantizable_weights(model)
    if unknown := schemes.keys() - inputs.keys():
        raise ValueError(f"no weights that can be quantised: {sorted(unknown)}")
    check_group_sizes(inputs, schemes)
    for name in schemes:
        _check_finite(model.graph.initializers[name])
    if method != "round-to-nearest":
        if text is None:
            raise ValueError(f"{method} needs calibration text")
        _quantize_by_activations(model, schemes, method, text)
    for linear in list(find_linears(model)):
        if linear.name in schemes and linear.name in model.graph.initializers:  # else it is shared
            _quantize(model, linear.weight, linear.transposed, schemes, round_to_nearest)
    for name, table in _token_embeddings(model).items():
        if name in schemes:
            _quantize(model, table, True, schemes, round_to_nearest)


def _quantize_by_activations(
    model: ir.Model, schemes: Schemes, method: Method, text: CalibrationText
) -> None:
    # Activations are those of the float model: a copy of the graph, not of its weights.
    parts = collect_in_parts(
        model.clone(), text.windows, text.workspace, weights=schemes.keys(), budget=text.budget
    )
    for statistics in parts:
        by_source: dict[ir.Value, list[Linear]] = {}
        for linear in find_linears(model):
            if linear.name in statistics and linear.dequantize is None:
                by_source.setdefault(linear.source, []).append(linear)
        for linears in by_source.values():
            seen = statistics[linears[0].name]
            check_statistics(linears[0].name, seen)
            quantizer: _Quantizer
            if method == "awq":
                seen = _rescale(model, linears, schemes, seen)
                quantizer = partial(round_clipped, second_moment=second_moment(seen))
            else:
                quantizer = Gptq(second_moment(seen)).quantize
            for linear in linears:
                if linear.name in model.graph.initializers:  # else it is shared, and done
                    _quantize(model, linear.weight, linear.transposed, schemes, quantizer)


def _rescale(
    model: ir.Model, linears: Sequence[Linear], schemes: Schemes, seen: InputStatistics
) -> InputStatistics:
    """Scale input channels as AWQ does, where that costs nothing; returns what is seen then."""
    if not can_fold(linears) or not all(map(has_own_weight, linears)):
        return seen
    scale = search_scale([(linear.array(), schemes[linear.name]) for linear in linears], seen)
    if scale is None:
        return seen
    fold_input_scale(model, linears, scale)
    return replace(seen, second_moment=second_moment(seen) / np.outer(scale, scale))


def _quantize(
    model: ir.Model, weight: ir.Value, transposed: bool, schemes: Schemes, quantizer: _Quantizer
) -> None:
    """Quantise one weight, so many rows at a time that little memory is needed besides."""
    assert weight.name is not None
    assert weight.const_value is not None
    stored = weight.const_value.numpy()
    array = stored if transposed else stored.T
    scheme = schemes[weight.name]
    rows = max(1, _CHUNK // array.shape[1])
    chunks = [
        quantizer(array[start : start + rows].astype(np.float32), scheme)
        for start in range(0, len(array), rows)
    ]
    zero_points = [chunk.zero_points for chunk in chunks if chunk.zero_points is not None]
    quantized = QuantizedWeight(
        scheme,
        np.concatenate([chunk.integers for chunk in chunks]),
        np.concatenate([chunk.scales for chunk in chunks]),
        np.concatenate(zero_points) if zero_points else None,
    )
    quantize_initializer(model, weight, quantized, transposed=transposed)


def _token_embeddings(model: ir.Model) -> dict[str, ir.Value]:
    """The float tables that are gathered by token, by name; position tables aren't."""
    tables = {}
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or not table.is_initializer() or len(table.shape or ()) != 2:
            continue
        if node.attributes.get_int("axis", 0) == 0 and _is_tokens(node.inputs[1]):
            tables[str(table.name)] = table
    return tables


def _is_tokens(value: ir.Value | None) -> bool:
    """Whether a value is the graph's token input, reshaped at most."""
    while value is not None and not value.is_graph_input():
        producer = value.producer()
        if producer is None or producer.op_type not in ("Reshape", "Cast", "Identity"):
            return False
        value = producer.inputs[0]
    return value is not None and value.name == INPUT_IDS


def _check_finite(weight: ir.Value) -> None:
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    rows = max(1, _CHUNK // array.shape[1])
    for start in range(0, len(array), rows):
        if not np.isfinite(array[start : start + rows].astype(np.float32)).all():
            raise UserError(
                f"{weight.name} has values that are NaN or infinite: repair the checkpoint, "
                "it can't be quantised."
            )


def check_statistics(name: str, seen: InputStatistics) -> None:
    """Raise UserError where second moments aren't finite, or of nothing."""
    if seen.rows == 0 or not np.isfinite(second_moment(seen)).all():
        raise UserError(
            f"The inputs of {name} are not finite on the calibration text: use another text, or "
            "round to nearest, which needs none."
        )


def second_moment(seen: InputStatistics) -> Floats:
    """The second moment [in, in] of statistics that were collected with it."""
    assert seen.second_moment is not None
    return seen.second_moment
