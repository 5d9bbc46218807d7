"""How large the activations of a graph are, to know which of them float16 can't hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.calibration import Window, observe
from engines.passes.insertion import Inserter

LARGEST_SAFE = float(np.finfo(np.float16).max) / 2
"""Other text than that of the calibration may go twice as far."""


def activation_ranges(
    model: ir.Model, windows: Sequence[Window], workspace: Path
) -> dict[str, float]:
    """The largest magnitude of each node's results over the windows, by the node's name.

    ``model`` is a standard graph in float32 with known types and stays as it is; each of
    ``windows`` is a row of tokens, int64 [n], maybe with a source, that is prefilled by itself.
    ``workspace`` is a directory for the weights while the graph runs.
    """
    copy = model.clone()
    owners: dict[str, str] = {}
    largest: list[ir.Value] = []
    for node in list(copy.graph):
        for position, output in enumerate(node.outputs):
            if output.dtype == ir.DataType.FLOAT and node.name is not None:
                value = _largest_magnitude(copy.graph, node, position)
                owners[value.name or ""] = node.name
                largest.append(value)
    copy.graph.sort()
    ranges = dict.fromkeys(owners.values(), 0.0)
    for arrays in observe(copy, largest, windows, workspace):
        for name, array in arrays.items():
            ranges[owners[name]] = float(np.maximum(ranges[owners[name]], array))  # keeps a NaN
    return ranges


def out_of_range(ranges: Mapping[str, float], largest: float = LARGEST_SAFE) -> set[str]:
    """Names of the nodes whose results are larger than ``largest``, or NaN."""
    return {name for name, value in ranges.items() if not value <= largest}


def _largest_magnitude(graph: ir.Graph, node: ir.Node, position: int) -> ir.Value:
    """A float32 scalar, computed from an output of ``node``."""
    insert = Inserter(graph, node, f"{node.name}/largest{position}")
    magnitude = insert.value("Abs", [node.outputs[position]])
    value = insert.value("ReduceMax", [magnitude], keepdims=0)
    value.shape, value.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
    return value
