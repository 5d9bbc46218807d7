"""Adding constant tensors to a graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """An initialiser of this name and content; the one that is there if the name is taken."""
    if name not in graph.initializers:
        _register(graph, name, ir.tensor(array, name=name))
    return graph.initializers[name]


def add_lazy_initializer(
    graph: ir.Graph,
    name: str,
    shape: Sequence[int],
    dtype: ir.DataType,
    compute: Callable[[], npt.NDArray[Any]],
) -> ir.Value:
    """An initialiser that is computed whenever it is read, so that it takes no memory meanwhile."""

    def tensor() -> ir.TensorProtocol:
        return ir.tensor(compute(), dtype=dtype, name=name)

    lazy = ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name)
    return _register(graph, name, lazy)


def _register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
