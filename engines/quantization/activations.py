"""Activations of linear layers in 8 bits: QuantizeLinear and DequantizeLinear in front of them.

One static scale for the tensor, symmetric: what TensorRT takes, and it lets the integers be
multiplied and the product be scaled once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.calibration import observe
from engines.initializers import add_initializer
from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter
from engines.quantization.weights import Floats
from serving.engine import IntArray

HIGHEST = 127
_SAMPLE = 256  # tokens, from all windows


@dataclass
class Activations:
    """What calibration saw of the source of some linear layers."""

    largest: Floats
    """Largest magnitude of each channel, [in]."""
    sample: list[Floats] = field(default_factory=list)
    """Some tokens of each window, [tokens, in]."""

    def add(self, tokens: Floats, sampled: int) -> None:
        """Count tokens [tokens, in] in and keep about ``sampled`` of them."""
        np.maximum(self.largest, np.abs(tokens).max(axis=0), out=self.largest)
        self.sample.append(tokens[:: -(-len(tokens) // sampled)].copy())

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
    seen = {group[0].source: Activations(np.zeros(group[0].inputs, np.float32)) for group in groups}
    for arrays in observe(model, list(seen), windows, workspace):
        for source, activations in seen.items():
            tokens = arrays[source.name or ""].reshape(-1, len(activations.largest))
            activations.add(tokens, -(-_SAMPLE // len(windows)))
    return seen


def linears_by_source(model: ir.Model) -> Iterator[list[Linear]]:
    """Float linear layers in groups that read one tensor, in the graph's order."""
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in find_linears(model):
        if linear.dequantize is None:
            groups.setdefault(linear.source, []).append(linear)
    yield from groups.values()


def quantize_source(graph: ir.Graph, linears: Sequence[Linear], scale: float) -> None:
    """Let these layers, which have one source, read it as int8 times ``scale``; edits in place."""
    source = linears[0].source
    assert source.dtype is not None
    name = linears[0].matmul.name or linears[0].name
    inputs = [
        add_initializer(graph, f"{name}/activation_scale", np.array(scale, source.dtype.numpy())),
        add_initializer(graph, "activation_zero", np.zeros((), np.int8)),
    ]
    insert = Inserter(graph, linears[0].matmul, f"{name}/activations")
    integers = insert.value("QuantizeLinear", [source, *inputs])
    integers.shape, integers.type = source.shape, ir.TensorType(ir.DataType.INT8)
    floats = insert.value("DequantizeLinear", [integers, *inputs])
    floats.shape, floats.type = source.shape, source.type
    for linear in linears:
        linear.matmul.replace_input_with(0, floats)


def rounded(tokens: Floats, scale: float) -> Floats:
    """The activations that their 8-bit integers stand for."""
    integers = np.clip(np.rint(tokens / np.float32(scale)), -HIGHEST - 1, HIGHEST)
    dequantized: Floats = integers * np.float32(scale)
    return dequantized
