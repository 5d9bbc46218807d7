"""Floating-point scalars as initialisers, for passes that multiply or compare."""

import numpy as np
import onnx_ir as ir


def scalar(graph: ir.Graph, number: float, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """A 0-dimensional initialiser of ``dtype``, made once a graph."""
    name = f"{dtype.name.lower()}_{number!r}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(number, dtype=dtype.numpy()), name=name)
        value = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
