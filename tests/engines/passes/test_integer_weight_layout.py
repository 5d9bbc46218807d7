"""Integer weights are stored as [in, out], unless their kernels want them otherwise."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.integer_weight_layout import lay_out_integer_weights
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

INPUTS = {"ids": np.array([[3, 0, 11], [7, 7, 1]]), "x": random(2, 3, 8, seed=2)}
BY_ROW, BY_GROUP = "axis=0", "axis=1, block_size=4"


def tied(layout: str, groups: int | None, dtype: type = np.int8) -> ir.Model:
    """A weight [12, 8] that is gathered by token and multiplied with."""
    integers = np.random.default_rng(0).integers(-7, 8, (12, 8)).astype(dtype)
    shape = (12,) if groups is None else (12, groups)
    body = (
        f"w = DequantizeLinear <{layout}> (integers, scales) rows = Gather(w, ids) "
        "t = Transpose <perm=[1,0]> (w) y = MatMul(x, t)"
    )
    text = (
        "agraph (int64[2,3] ids, float[2,3,8] x) => (float[2,3,8] rows, float[2,3,12] y) "
        f"{{ {body} }}"
    )
    return graph(text, {"integers": integers, "scales": np.abs(random(*shape, seed=1))})


@pytest.mark.parametrize(("layout", "groups"), [(BY_ROW, None), (BY_GROUP, 2)])
def test_a_tied_weight_is_turned_once_for_both(layout: str, groups: int | None) -> None:
    after = assert_same_numbers(lambda: tied(layout, groups), lay_out_integer_weights, INPUTS)
    (node,) = (node for node in after.graph if node.op_type == "DequantizeLinear")
    assert node.inputs[0].shape == ir.Shape([8, 12])
    (product,) = (node for node in after.graph if node.op_type == "MatMul")
    assert product.inputs[1] is node.outputs[0]


@pytest.mark.parametrize("scales", [(), (12,), (12, 2)])
def test_float8_is_turned_whatever_has_a_scale(scales: tuple[int, ...]) -> None:
    """TensorRT-RTX keeps a second copy of [out, in], with one scale and with blocks."""

    def make() -> ir.Model:
        layout = BY_GROUP if len(scales) == 2 else BY_ROW
        model = tied(layout, 2 if len(scales) == 2 else None, ml_dtypes.float8_e4m3fn)
        if not scales:
            only = np.array(0.5, np.float32)
            model.graph.initializers["scales"].const_value = ir.tensor(only, name="scales")
            model.graph.initializers["scales"].shape = ir.Shape([])
        return model

    after = assert_same_numbers(make, lay_out_integer_weights, INPUTS)
    (node,) = (node for node in after.graph if node.op_type == "DequantizeLinear")
    assert node.inputs[0].shape == ir.Shape([8, 12])


def test_four_bits_by_row_are_turned_too() -> None:
    model = tied(BY_ROW, None, ml_dtypes.int4)
    lay_out_integer_weights(model)
    (node,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    assert node.inputs[0].shape == ir.Shape([8, 12])
    before = tied(BY_ROW, None, ml_dtypes.int4).graph.initializers["integers"].const_value.numpy()
    assert (node.inputs[0].const_value.numpy() == before.T).all()


def test_four_bits_in_groups_stay() -> None:
    assert_untouched(lambda: tied(BY_GROUP, 2, ml_dtypes.int4), lay_out_integer_weights)


def test_a_product_of_integers_stays() -> None:
    def make() -> ir.Model:
        body = (
            "q = QuantizeLinear(x, one, zero) d = DequantizeLinear(q, one, zero) "
            "w = DequantizeLinear <axis=0> (integers, scales) "
            "t = Transpose <perm=[1,0]> (w) y = MatMul(d, t)"
        )
        text = f"agraph (float[2,3,8] x) => (float[2,3,12] y) {{ {body} }}"
        weights = {
            "integers": np.ones((12, 8), np.int8),
            "scales": np.ones(12, np.float32),
            "one": np.array(1, np.float32),
            "zero": np.array(0, np.int8),
        }
        return graph(text, weights)

    assert_untouched(make, lay_out_integer_weights)
    assert operators(make())["Transpose"] == 1
