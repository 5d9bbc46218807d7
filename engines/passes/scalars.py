"""Floating-point scalars as initialisers, for passes that multiply or compare."""

import numpy as np
import onnx_ir as ir


def scalar(graph: ir.Graph, number: float) -> ir.Value:
    """A float32 initialiser of no dimensions, made once a graph."""
    name = f"float_scalar_{number!r}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.float32(number), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape([]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=tensor,
        )
        graph.register_initializer(value)
    return graph.initializers[name]
