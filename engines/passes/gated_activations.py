"""Gated activation functions as one operator: SiLU or GELU of one half of a row, times the other.

Shazeer, GLU Variants Improve Transformer, 2020. Gate and up projection are one product here, see
merged_projections.py, which would be split, activated and multiplied in passes of their own over
memory. The operators are functions of the graph: ONNX Runtime runs their bodies where our kernels
for the CPU aren't registered.
"""

import onnx_ir as ir
import onnx_ir.passes.common as common

from engines.passes.insertion import Inserter, take_place
from engines.passes.matching import integers, is_last_axis, only_reader
from engines.passes.own_operators import DOMAIN, define

_ACTIVATIONS = {
    "SwiGlu": """
        sigmoid = Sigmoid (gate)
        activated = Mul (gate, sigmoid)
    """,
    "GeGlu": """
        activated = Gelu <approximate = "tanh"> (gate)
    """,
}
_BODY = """
    gate, up = Split <axis = -1, num_outputs = 2> (x)
    {}
    y = Mul (activated, up)
"""


def fuse_gated_activations(model: ir.Model) -> None:
    """Replace Split, activation and product by SwiGlu or GeGlu, in place, where all is float32."""
    used = set()
    for split in list(model.graph):
        found = _gated(split) if split.op_type == "Split" else None
        if found is not None:
            operator, product = found
            _replace(model.graph, split, operator, product)
            used.add(operator)
    for operator in sorted(used):
        define(model, DOMAIN, f"{operator} (x) => (y)", _BODY.format(_ACTIVATIONS[operator]))
    if used:
        common.RemoveUnusedNodesPass()(model)


def _gated(split: ir.Node) -> tuple[str, ir.Node] | None:
    """The operator that a Split and what follows it are, and the product at their end."""
    if not _halves(split):
        return None
    gate, up = split.outputs
    product = only_reader(up, "Mul")
    if product is None:
        return None
    activated = next((value for value in product.inputs if value is not up), None)
    last = activated.producer() if activated is not None else None
    if activated is None or last is None or only_reader(activated, "Mul") is not product:
        return None
    if last.op_type == "Gelu" and last.attributes.get_string("approximate", "none") == "tanh":
        return ("GeGlu", product) if only_reader(gate, "Gelu") is last else None
    if last.op_type == "Mul" and gate in last.inputs and len(gate.uses()) == 2:
        sigmoid = next((value for value in last.inputs if value is not gate), None)
        node = sigmoid.producer() if sigmoid is not None else None
        if sigmoid is not None and node is not None and node.op_type == "Sigmoid":
            is_own = node.inputs[0] is gate and len(sigmoid.uses()) == 1
            return ("SwiGlu", product) if is_own else None
    return None


def _halves(split: ir.Node) -> bool:
    """Whether a Split of float32 makes two equal parts of the last axis."""
    source = split.inputs[0]
    if source is None or source.dtype != ir.DataType.FLOAT or not is_last_axis(split):
        return False
    if len(split.outputs) != 2 or any(value.is_graph_output() for value in split.outputs):
        return False
    if len(split.inputs) < 2:
        size = source.shape[-1] if source.shape is not None else None
        return isinstance(size, int) and size % 2 == 0
    sizes = integers(split.inputs[1])
    return sizes is not None and sizes[0] == sizes[1]


def _replace(graph: ir.Graph, split: ir.Node, operator: str, product: ir.Node) -> None:
    insert = Inserter(graph, product, (product.name or operator).rpartition("/")[0])
    take_place(graph, product, insert.value(operator, [split.inputs[0]], domain=DOMAIN))
