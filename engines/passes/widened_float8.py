"""Turn float8 weights into floats, for runtimes that have no kernels for them.

ONNX Runtime's CPU provider would dequantise the whole weight in every step. The numbers are the
same; the file is as large as that of an unquantised model.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_lazy_initializer
from engines.passes.merged_projections import merge_projections


def widen_float8_weights(model: ir.Model) -> None:
    """Replace DequantizeLinear of float8 weights by the floats that it gives, in place.

    These are computed when they are read. Projections are merged then, as those of floats are.
    """
    found = [node for node in model.graph if _is_float8_weight(node)]
    for node in found:
        _widen(model.graph, node)
    if found:
        merge_projections(model)


def _is_float8_weight(node: ir.Node) -> bool:
    numbers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    if numbers is None or not numbers.is_initializer():
        return False
    return numbers.dtype == ir.DataType.FLOAT8E4M3FN


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    stored = node.inputs[0]
    numbers, scales = (value.const_value for value in node.inputs[:2] if value is not None)
    assert stored is not None
    assert stored.name is not None
    assert numbers is not None
    assert scales is not None
    axis, block = (node.attributes.get_int(name, 0) for name in ("axis", "block_size"))
    del graph.initializers[stored.name]
    floats = add_lazy_initializer(
        graph,
        stored.name.removesuffix(".float8"),
        list(numbers.shape.numpy()),
        scales.dtype,
        lambda: _product(numbers.numpy(), scales.numpy(), axis, block),
    )
    node.outputs[0].replace_all_uses_with(floats)
    graph.remove(node, safe=True)


def _product(
    numbers: npt.NDArray[Any], scales: npt.NDArray[Any], axis: int, block: int
) -> npt.NDArray[Any]:
    """What DequantizeLinear gives, in the scales' type."""
    wide = scales.astype(np.float32)
    if wide.ndim == 1:
        wide = wide[:, None] if axis == 0 else wide
    elif wide.ndim == 2:
        wide = wide.repeat(block, axis)
    return (numbers.astype(np.float32) * wide).astype(scales.dtype)
