"""Multiply attention's scale into the queries, which leaves ``Attention`` with a scale of 1.

TensorRT's attention has no scale. Its parser multiplies queries and keys by the scale's square root
instead, and the keys are the whole KV buffer: every step would go over all of it once more.
"""

import onnx_ir as ir

from engines.passes.insertion import Inserter
from engines.passes.sizes import known_type, static_size


def scale_queries(model: ir.Model) -> None:
    """Give every Attention node scaled queries and a scale of 1, in place.

    The product is computed in float32 and rounded once: a scale rounded to half precision would be
    off by the same factor everywhere.
    """
    for node in list(model.graph):
        if node.op_type != "Attention":
            continue
        query, key = node.inputs[:2]
        dtype = known_type(node.outputs[0])
        scale = node.attributes.get_float("scale", static_size(key, 3) ** -0.5)
        if scale == 1.0:
            continue
        insert = Inserter(model.graph, node, f"{node.name}/scaled")
        full = query if dtype == ir.DataType.FLOAT else insert.value("Cast", [query], to=1)
        scaled = insert.value("Mul", [full, insert.number(scale)])
        if dtype != ir.DataType.FLOAT:
            scaled = insert.value("Cast", [scaled], to=dtype)
        scaled.type = ir.TensorType(dtype)
        node.replace_input_with(0, scaled)
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
