"""Products with transposed weights become one node that reads the weight as it is stored."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.passes.transposed_weights import fuse_transposed_weights
from tests.engines.passes.graphs import assert_close, operators, run

X = np.random.default_rng(2).standard_normal((2, 3, 8)).astype(np.float32)


def linear_layers() -> ir.Model:
    """y = (x @ Wᵀ) @ V, and z = x @ xᵀ: two products to fuse, one that isn't."""
    random = np.random.default_rng(3)
    weights = {"W": (16, 8), "V": (16, 4)}
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["W"], ["Wt"], "fc/Transpose", perm=[1, 0]),
            helper.make_node("MatMul", ["x", "Wt"], ["h"], "fc/MatMul"),
            helper.make_node("MatMul", ["h", "V"], ["y"], "out/MatMul"),
            helper.make_node("Transpose", ["x"], ["xt"], "scores/Transpose", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "xt"], ["z"], "scores/MatMul"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 3, 3]),
        ],
        [
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_numbers_and_nodes() -> None:
    model = linear_layers()
    reference = ReferenceEvaluator(ir.to_proto(linear_layers()))
    expected = dict(zip(("y", "z"), reference.run(None, {"x": X}), strict=True))
    fuse_transposed_weights(model)
    assert operators(model) == {"FusedMatMul": 2, "MatMul": 1, "Transpose": 2}
    assert_close(run(model, {"x": X}), expected)


def test_the_weight_is_read_as_it_is_stored_and_the_node_keeps_its_name() -> None:
    model = linear_layers()
    fuse_transposed_weights(model)
    fused = next(node for node in model.graph if node.op_type == "FusedMatMul")
    assert fused.inputs[1] is model.graph.initializers["W"]
    assert (fused.name, fused.outputs[0].name) == ("fc/MatMul", "h")


def test_a_weight_stored_the_other_way_is_turned_round() -> None:
    model = linear_layers()
    stored = model.graph.initializers["V"].const_value.numpy()
    fuse_transposed_weights(model)
    turned = model.graph.initializers["V.turned_round"]
    np.testing.assert_array_equal(turned.const_value.numpy(), stored.T)
