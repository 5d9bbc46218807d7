"""Activations of linear layers in 8 bits: QuantizeLinear and DequantizeLinear in front of them.

One static scale for the tensor, symmetric: what TensorRT takes, and it lets the integers be
multiplied and the product be scaled once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.calibration import observe
from engines.initializers import add_initializer
from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter
from engines.quantization.weights import Floats
from serving.engine import IntArray

HIGHEST = 127
_SAMPLE = 256  # tokens, from every other window


@dataclass
class Activations:
    """What calibration saw of the source of some linear layers, in two halves of the text.

    Magnitudes of one half, tried on the other, show what text that was not seen would saturate.
    """

    largest: Floats
    """Largest magnitude of each channel, [in]."""
    fitted: Floats
    """The same, in the first, third ... window."""
    sample: list[Floats] = field(default_factory=list)
    """Some tokens of each of the other windows, [tokens, in]."""

    def tokens(self) -> Floats:
        """The whole sample, [tokens, in]."""
        return np.concatenate(self.sample)


def watch_sources(
    model: ir.Model,
    groups: Sequence[Sequence[Linear]],
    windows: Sequence[IntArray],
    workspace: Path,
) -> dict[ir.Value, Activations]:
    """What goes into each group of layers with one source; the model stays as it is.

    ``windows`` and ``workspace`` as for ``observe``.
    """
    seen = {}
    for group in groups:
        largest, fitted = np.zeros((2, group[0].inputs), np.float32)
        seen[group[0].source] = Activations(largest, fitted)
    kept = -(-_SAMPLE // max(len(windows) // 2, 1))
    for index, arrays in enumerate(observe(model, list(seen), windows, workspace)):
        for source, activations in seen.items():
            tokens = arrays[source.name or ""].reshape(-1, len(activations.largest))
            magnitude = np.abs(tokens).max(axis=0)
            np.maximum(activations.largest, magnitude, out=activations.largest)
            if index % 2 == 0:
                np.maximum(activations.fitted, magnitude, out=activations.fitted)
            if index % 2 or len(windows) == 1:
                activations.sample.append(tokens[:: -(-len(tokens) // kept)].copy())
    return seen


def linears_by_source(model: ir.Model) -> Iterator[list[Linear]]:
    """Float linear layers in groups that read one tensor, in the graph's order."""
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in find_linears(model):
        if linear.dequantize is None:
            groups.setdefault(linear.source, []).append(linear)
    yield from groups.values()


def quantize_source(
    graph: ir.Graph,
    linears: Sequence[Linear],
    scale: float,
    dtype: npt.DTypeLike = np.int8,
) -> None:
    """Let these layers, which have one source, read it as ``dtype`` times ``scale``; in place.

    ``linears`` are in the graph's order; ``dtype`` is int8 or float8_e4m3fn.
    """
    source = linears[0].source
    assert source.dtype is not None
    name = linears[0].matmul.name or linears[0].name
    inputs = [
        add_initializer(graph, f"{name}/activation_scale", np.array(scale, source.dtype.numpy())),
        add_initializer(graph, "activation_zero", np.zeros((), dtype)),
    ]
    insert = Inserter(graph, linears[0].matmul, f"{name}/activations")
    integers = insert.value("QuantizeLinear", [source, *inputs])
    integers.shape = source.shape
    integers.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    floats = insert.value("DequantizeLinear", [integers, *inputs])
    floats.shape, floats.type = source.shape, source.type
    for linear in linears:
        linear.matmul.replace_input_with(0, floats)


def rounded(tokens: Floats, scale: float) -> Floats:
    """The activations that their 8-bit integers stand for."""
    integers = np.clip(np.rint(tokens / np.float32(scale)), -HIGHEST - 1, HIGHEST)
    dequantized: Floats = integers * np.float32(scale)
    return dequantized
