"""A float32 copy of a half precision graph: same nodes, same names, numbers that don't overflow."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from engines.passes.widened_floats import widen_floats
from tests.engines.passes.small_graphs import graph

NARROW = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
X = np.array([[1, 200, 300]], np.float32)  # exact in either type
WEIGHT = np.array([[0.5, -100], [300, 1], [1.5, 2]], np.float32)


def narrow_graph(kind: str) -> ir.Model:
    """Products beyond float16's range, between casts to and from float32 and beside integers."""
    dtype = NARROW[kind]
    code = helper.np_dtype_to_tensor_dtype(dtype)
    model = graph(
        f"""
        agraph ({kind}[n, 3] x) => ({kind}[n, 2] y, int64[2] sizes) {{
            product = MatMul (x, weight)
            wide = Cast <to: int = 1> (product)
            root = Cast <to: int = {code}> (wide)
            sizes = Shape (root)
            ones = ConstantOfShape <value: tensor = float[1] {{2}}> (sizes)
            twos = Cast <to: int = {code}> (ones)
            y = Mul (root, twos)
        }}
        """,
        {"weight": WEIGHT.astype(dtype)},
    )
    # The text form can't write these types: let the node itself give half precision.
    constant = next(node for node in model.graph if node.op_type == "ConstantOfShape")
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array([2], dtype)))
    constant.outputs[0].type = ir.TensorType(ir.DataType(code))
    return model


@pytest.mark.parametrize("kind", NARROW)
def test_numbers_are_those_of_float32(kind: str) -> None:
    model = narrow_graph(kind)
    names = [node.name for node in model.graph]
    widen_floats(model, ir.DataType[kind.upper()])
    assert [node.name for node in model.graph] == names
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    y, sizes = ReferenceEvaluator(proto).run(None, {"x": X})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, 2 * (X @ WEIGHT))
    np.testing.assert_array_equal(sizes, [1, 2])


@pytest.mark.parametrize("kind", NARROW)
def test_nothing_narrow_is_left(kind: str) -> None:
    model = narrow_graph(kind)
    narrow = ir.DataType[kind.upper()]
    widen_floats(model, narrow)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    assert narrow not in {value.dtype for value in values}
    assert {value.dtype for value in values} == {ir.DataType.FLOAT, ir.DataType.INT64}


def test_the_copied_graph_stays_as_it_is() -> None:
    model = narrow_graph("float16")
    before = ir.to_proto(model).SerializeToString()
    widen_floats(model.clone(), ir.DataType.FLOAT16)
    assert ir.to_proto(model).SerializeToString() == before


def test_other_types_stay() -> None:
    model = narrow_graph("float16")
    before = ir.to_proto(model).SerializeToString()
    widen_floats(model, ir.DataType.BFLOAT16)
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_are_widened_when_they_are_read() -> None:
    model = narrow_graph("float16")
    widen_floats(model, ir.DataType.FLOAT16)
    tensor = model.graph.initializers["weight"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert not tensor.cache
    assert (tensor.dtype, tensor.shape) == (ir.DataType.FLOAT, ir.Shape([3, 2]))
