"""bfloat16 arithmetic is computed in float32 and rounded once."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from engines.passes.bfloat16_arithmetic import widen_bfloat16_arithmetic
from tests.engines.passes.graphs import operators, run

BF16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def arithmetic(kind: int = BF16) -> ir.Model:
    """y = -(a * b + a), with float32 at the graph's ends, for that is what runs anywhere."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["a32"], ["a"], to=kind),
            helper.make_node("Cast", ["b32"], ["b"], to=kind),
            helper.make_node("Mul", ["a", "b"], ["ab"], "m/Mul"),
            helper.make_node("Add", ["ab", "a"], ["sum"], "m/Add"),
            helper.make_node("Neg", ["sum"], ["negated"], "m/Neg"),
            helper.make_node("Cast", ["negated"], ["y"], to=FLOAT),
        ],
        "arithmetic",
        [helper.make_tensor_value_info(name, FLOAT, ["n"]) for name in ("a32", "b32")],
        [helper.make_tensor_value_info("y", FLOAT, ["n"])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def numbers() -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    return {name: random.standard_normal(100).astype(np.float32) for name in ("a32", "b32")}


def test_numbers_stay_to_the_last_bit() -> None:
    model = arithmetic()
    widen_bfloat16_arithmetic(model)
    inputs = numbers()
    got = run(model, inputs)["y"]
    expected = ReferenceEvaluator(ir.to_proto(arithmetic())).run(None, inputs)[0]
    np.testing.assert_array_equal(got, np.asarray(expected, np.float32))

    a, b = (array.astype(ml_dtypes.bfloat16) for array in inputs.values())
    np.testing.assert_array_equal(got, (-(a * b + a)).astype(np.float32))


def test_onnx_runtime_needs_it() -> None:
    """Or else the pass has no reason to be."""
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run(arithmetic(), numbers())


def test_nodes_before_and_after() -> None:
    model = arithmetic()
    widen_bfloat16_arithmetic(model)
    counts = operators(model)
    assert (counts["Mul"], counts["Add"], counts["Neg"]) == (1, 1, 1)
    assert counts["Cast"] == 3 + 5 + 3  # one an input, one a result
    for node in model.graph:
        if node.op_type in ("Mul", "Add", "Neg"):
            assert {value.dtype for value in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT}


def test_float32_is_left_alone() -> None:
    model = arithmetic(FLOAT)
    before = operators(model)
    widen_bfloat16_arithmetic(model)
    assert operators(model) == before
