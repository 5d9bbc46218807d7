"""Mixed precision: 4 bits for weights that bear it and 8 for the others, under a budget.

How sensitive a weight is, is measured: the KL divergence of the next token's distribution when that
weight alone has fewer bits. The divergences of small errors about add up, so the choice is a 0/1
knapsack: which weights should get the spare bits.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.calibration import opened, prefill_feeds
from engines.linears import Linear, find_linears
from engines.passes.group_query_attention import lower_to_group_query_attention
from engines.passes.sizes import known_type, static_size
from engines.passes.transposed_weights import fuse_transposed_weights
from engines.quality import QualityTally
from engines.quantization.weights import WeightScheme, round_to_nearest
from serving.contract import LOGITS
from serving.engine import IntArray

Bits = Literal[4, 8]
LOW: Bits = 4
HIGH: Bits = 8
_MOST_UNITS = 100_000  # steps in which the spare bits are counted


def assign_bits(
    sensitivities: Mapping[str, float], sizes: Mapping[str, int], budget: float
) -> dict[str, Bits]:
    """The bits of each weight that cost the least, with at most ``budget`` bits on average.

    ``sensitivities`` says what 4 bits instead of 8 cost, ``sizes`` how many numbers a weight has;
    the average is over these numbers and leaves out scales and zero points. Optimal as long as the
    sizes have a common divisor that is not tiny, by dynamic programming. Raises ValueError where
    the budget is below 4.
    """
    if budget < LOW:
        raise ValueError(f"a budget of {budget:g} bits is less than every weight's {LOW}")
    names = list(sensitivities)
    # The average allows this many numbers to have 8 bits; a tolerance for sums of floats.
    spare = int((budget - LOW) / (HIGH - LOW) * sum(sizes[name] for name in names) + 1e-6)
    unit = max(math.gcd(*(sizes[name] for name in names)), -(-spare // _MOST_UNITS))
    capacity = spare // unit
    units = {name: -(-sizes[name] // unit) for name in names}
    saved = np.zeros(capacity + 1)  # the most that so many units can save
    taken = np.zeros((len(names), capacity + 1), dtype=bool)
    for row, name in enumerate(names):
        size = units[name]
        if size <= capacity:
            with_it = saved[: capacity + 1 - size] + max(sensitivities[name], 0.0)
            taken[row, size:] = with_it > saved[size:]
            saved[size:] = np.maximum(saved[size:], with_it)
    bits: dict[str, Bits] = dict.fromkeys(names, LOW)
    left = capacity
    for row, name in reversed(list(enumerate(names))):
        if taken[row, left]:
            bits[name] = HIGH
            left -= units[name]
    return bits


def average_bits(bits: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Bits a number, averaged over all weights, without scales and zero points."""
    return sum(bits[name] * sizes[name] for name in bits) / sum(sizes[name] for name in bits)


def weight_sizes(model: ir.Model) -> dict[str, int]:
    """How many numbers each linear layer's weight has, by its name; a tied one counts once."""
    return {
        linear.name: static_size(linear.weight, 0) * static_size(linear.weight, 1)
        for linear in find_linears(model)
    }


def measure_sensitivities(
    model: ir.Model, scheme: WeightScheme, windows: Sequence[IntArray], workspace: Path
) -> dict[str, float]:
    """KL divergence in nats a token when one weight alone is rounded by ``scheme``, by its name.

    ``model`` is a standard graph with float weights and stays as it is; each of ``windows`` is a
    row of tokens, int64 [n]. The whole text runs once for each weight. ``workspace`` is a directory
    for the weights while the graph runs. Raises ValueError where the group size doesn't divide.
    """
    graph, linears = _graph_with_weights_as_inputs(model)
    sensitivities = {}
    with opened(graph, workspace) as session:
        feeds = [prefill_feeds(graph, window) for window in windows]
        expected = [session.run([LOGITS], feed)[0][0] for feed in feeds]
        for linear in linears:
            rounded = {linear.name: _rounded(linear, scheme)}
            tally = QualityTally()
            for window, feed, reference in zip(windows, feeds, expected, strict=True):
                got = session.run([LOGITS], feed | rounded)[0][0]
                tally.add(reference[:-1], got[:-1], np.asarray(window)[1:])
            sensitivities[linear.name] = tally.quality().mean_kl
    return sensitivities


def _graph_with_weights_as_inputs(model: ir.Model) -> tuple[ir.Model, list[Linear]]:
    """A copy whose linear weights are inputs with a default, and the layers, one a weight."""
    copy = model.clone()
    linears = list({linear.name: linear for linear in find_linears(copy)}.values())
    lower_to_group_query_attention(copy)
    fuse_transposed_weights(copy)
    copy.graph.inputs.extend(linear.weight for linear in linears)
    return copy, linears


def _rounded(linear: Linear, scheme: WeightScheme) -> npt.NDArray[Any]:
    """A weight as the graph stores it, with the numbers that its integers stand for."""
    weight = round_to_nearest(np.ascontiguousarray(linear.array()), scheme).dequantized()
    stored = weight if linear.transposed else weight.T
    return np.ascontiguousarray(stored, known_type(linear.weight).numpy())
