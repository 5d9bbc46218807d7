"""What leaves float16's range is computed in float32, and only that."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from engines.passes.float32_islands import widen_to_float32
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import graph

HALF = ir.DataType.FLOAT16.value
X = np.linspace(1, 300, 24, dtype=np.float16).reshape(3, 8)
WEIGHT = np.linspace(-450, 450, 64).astype(np.float16).reshape(8, 8)


def residual() -> ir.Model:
    """A product and a sum that leave the range, and a norm behind them that comes back."""
    return graph(
        """
        agraph (float16[n, 8] x) => (float16[n, 8] y, float16[n, 8] z) {
            scaled = Mul (x, half)
            product = MatMul (scaled, weight)
            total = Add (product, x)
            normalized = RMSNormalization <axis: int = -1> (total, scale)
            y = Neg (normalized)
            z = Neg (x)
        }
        """,
        {
            "weight": WEIGHT,
            "half": np.array(0.5, np.float16),
            "scale": np.ones(8, np.float16),
        },
    )


BEYOND = {"MatMul_product", "Add_total"}


def expected() -> np.ndarray:
    x, weight = X.astype(np.float32), WEIGHT.astype(np.float32)
    total = (x / 2) @ weight + x
    assert np.abs(total).max() > 65504
    return -total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5)


def evaluate(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """By the reference evaluator: ONNX Runtime's CPU kernels round less than float16 asks for."""
    outputs = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    return {v.name: np.asarray(o) for v, o in zip(model.graph.outputs, outputs, strict=True)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_islands_it_overflows() -> None:
    assert not np.isfinite(evaluate(residual(), X)["y"]).all()


def test_numbers_hold() -> None:
    model = residual()
    widen_to_float32(model, BEYOND)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = evaluate(model, X)
    assert got["y"].dtype == np.float16
    np.testing.assert_allclose(got["y"], expected(), rtol=2e-3)
    np.testing.assert_array_equal(got["z"], -X)


def test_only_what_has_to_be_is_float32() -> None:
    model = residual()
    before = operators(model)
    widen_to_float32(model, BEYOND)
    kinds = {node.name: {value.dtype for value in node.outputs} for node in model.graph}
    for name in ("MatMul_product", "Add_total", "RMSNormalization_normalized"):
        assert kinds[name] == {ir.DataType.FLOAT}
    for name in ("Mul_scaled", "Neg_y", "Neg_z"):
        assert kinds[name] == {ir.DataType.FLOAT16}
    # Into the island: scaled, x and the weight; the small scale is folded. Out of it: the norm.
    assert operators(model) - before == {"Cast": 4}
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.FLOAT16] * 2


def test_a_cast_to_float32_behind_goes() -> None:
    model = graph(
        f"""
        agraph (float16[n] x) => (float16[n] y) {{
            square = Mul (x, x)
            wide = Cast <to: int = 1> (square)
            root = Sqrt (wide)
            y = Cast <to: int = {HALF}> (root)
        }}
        """
    )
    widen_to_float32(model, {"Mul_square"})
    x = np.array([1, 300, 60000], np.float16)
    np.testing.assert_array_equal(evaluate(model, x)["y"], x)
    assert operators(model) == {"Cast": 2, "Mul": 1, "Sqrt": 1}


def test_results_of_the_graph_stay_float16() -> None:
    model = residual()
    widen_to_float32(model, {"Neg_y"})
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert evaluate(model, X)["y"].dtype == np.float16


def test_a_number_that_is_repeated_is_widened_too() -> None:
    infinity = np.array(-np.inf, np.float16).view(np.uint16)
    model = graph(
        f"""
        agraph (float16[n] x) => (float16[n] y) {{
            size = Shape (x)
            lowest = ConstantOfShape <value: tensor = float16[1] {{{infinity}}}> (size)
            y = Max (x, lowest)
        }}
        """
    )
    widen_to_float32(model, {"ConstantOfShape_lowest"})
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(evaluate(model, X[0])["y"], X[0])


def test_nodes_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        widen_to_float32(residual(), {"nowhere"})
