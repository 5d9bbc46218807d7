"""Products of 8-bit weights and activations become one node, with the numbers of the Q/DQ graph."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.passes.integer_matmul import lower_integer_matmul
from engines.quantization.activations import linears_by_source, quantize_source
from engines.quantization.qdq import quantize_initializer
from engines.quantization.weights import WeightScheme, round_to_nearest
from tests.engines.passes.graphs import assert_close, operators, run

X = np.random.default_rng(2).standard_normal((2, 3, 32)).astype(np.float32)
SCALE = 2 / 127  # some of X saturates


def linear_layers(dtype: type = np.float32) -> ir.Model:
    """Two layers with one source, one weight stored [out, in] and one [in, out]; a tied third."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    random = np.random.default_rng(3)
    shapes = {"A": (16, 32), "B": (32, 24), "E": (8, 32)}
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(dtype), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Transpose", ["A"], ["At"], "a/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "At"], ["a"], "a/MatMul"),
        helper.make_node("MatMul", ["x", "B"], ["b"], "b/MatMul"),
        helper.make_node("Transpose", ["E"], ["Et"], "e/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "Et"], ["e"], "e/MatMul"),
        helper.make_node("Gather", ["E", "ids"], ["row"], "e/Gather"),
    ]
    ids = numpy_helper.from_array(np.array([5]), "ids")
    value = helper.make_tensor_value_info
    outputs = {"a": [2, 3, 16], "b": [2, 3, 24], "e": [2, 3, 8], "row": [1, 32]}
    graph = helper.make_graph(
        nodes,
        "linear",
        [value("x", kind, [2, 3, 32])],
        [value(name, kind, shape) for name, shape in outputs.items()],
        [*weights, ids],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(proto)


def quantized(
    *, dtype: type = np.float32, symmetric: bool = True, group: int | None = None
) -> ir.Model:
    model = linear_layers(dtype)
    for linears in linears_by_source(model):
        for linear in linears:
            scheme = WeightScheme(8, group, symmetric)
            weight = round_to_nearest(linear.array(), scheme)
            quantize_initializer(model, linear.weight, weight, transposed=linear.transposed)
        quantize_source(model.graph, linears, SCALE)
    return model


def test_numbers_and_nodes() -> None:
    model = quantized()
    names = [value.name for value in model.graph.outputs]
    reference = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": X})
    lower_integer_matmul(model)
    assert operators(model)["MatMulIntegerToFloat"] == 2
    assert operators(model)["MatMul"] == 1  # the tied one
    assert_close(run(model, {"x": X}), dict(zip(names, reference, strict=True)))


def test_the_activations_are_rounded_once_and_unsigned() -> None:
    model = quantized()
    lower_integer_matmul(model)
    products = [n for n in model.graph if n.op_type == "MatMulIntegerToFloat"]
    (integers,) = {product.inputs[0] for product in products}
    assert integers.dtype == ir.DataType.UINT8
    assert {product.inputs[1].dtype for product in products} == {ir.DataType.INT8}


def test_the_reference_is_the_rounded_arithmetic() -> None:
    """What the Q/DQ graph itself computes, in numpy."""
    weight = linear_layers().graph.initializers["A"].const_value.numpy().astype(np.float64)
    rows = np.abs(weight).max(axis=1, keepdims=True) / 127
    activations = np.clip(np.rint(X / np.float32(SCALE)), -128, 127) * SCALE
    expected = activations @ (np.rint(weight / rows) * rows).T
    assert_close(run(quantized(), {"x": X}, "a"), {"a": expected})


@pytest.mark.parametrize(
    "options", [{"symmetric": False}, {"group": 16}, {"dtype": np.float16}], ids=str
)
def test_what_the_operator_has_no_form_for_is_left_alone(options: dict[str, object]) -> None:
    model = quantized(**options)
    before = operators(model)
    lower_integer_matmul(model)
    assert operators(model) == before


def test_float_layers_are_left_alone() -> None:
    model = linear_layers()
    lower_integer_matmul(model)
    assert operators(model) == operators(linear_layers())
    assert TensorProto.UINT8 not in {v.dtype for v in model.graph.initializers.values()}
