"""Slice what a constant index takes of an axis, such as the queries among three projections.

TensorRT-RTX 1.7.1 crashes where it builds a product with integer weights whose parts are taken by
``Gather`` and normalised; the same with ``Slice`` it builds.
"""

import sys

import onnx_ir as ir

from engines.passes.insertion import Inserter, take_place
from engines.passes.matching import integers
from engines.passes.sizes import known_type


def slice_constant_indices(model: ir.Model) -> None:
    """Replace Gather of activations with one constant index by Slice, in place.

    A Squeeze follows where the index is a scalar. Integers, which are shapes and tokens, stay.
    """
    for node in list(model.graph):
        if node.op_type != "Gather":
            continue
        source, index = node.inputs
        assert source is not None
        chosen = integers(index)
        is_table = source.is_initializer() or known_type(source).is_integer()
        if chosen is None or len(chosen) != 1 or is_table:
            continue
        insert = Inserter(model.graph, node, f"{node.name}/slice")
        start, axis = chosen[0], insert.integers([node.attributes.get_int("axis", 0)])
        end = sys.maxsize if start == -1 else start + 1
        bounds = (insert.integers([start]), insert.integers([end]))
        result = insert.value("Slice", [source, *bounds, axis])
        assert index is not None
        if index.shape is not None and len(index.shape) == 0:
            result = insert.value("Squeeze", [result, axis])
        take_place(model.graph, node, result)
