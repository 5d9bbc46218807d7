"""What never changes is computed once, and what changes nothing goes."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.constant_folding import drop_neutral_nodes, fold_constants
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

X = {"x": random(2, 3, 8, seed=1)}


def test_one_plus_weight_becomes_an_initializer() -> None:
    """As in Gemma's norms."""

    def make() -> ir.Model:
        return graph(
            """
            agraph (float[b, s, 8] x) => (float[b, s, 8] y) <float one = {1.0}> {
                norm__scale = Add (norm__weight, one)
                y = Mul (x, norm__scale)
            }
            """,
            {"norm.weight": random(8)},
        )

    after = assert_same_numbers(make, fold_constants, X)
    assert operators(after) == {"Mul": 1}
    scale = after.graph.initializers["norm.scale"].const_value
    assert scale is not None
    np.testing.assert_array_equal(scale.numpy(), random(8) + np.float32(1))


def test_matrices_stay_as_they_are_stored() -> None:
    def make() -> ir.Model:
        return graph(
            """
            agraph (float[b, s, 8] x) => (float[b, s, 4] y) {
                turned = Transpose <perm: ints = [1, 0]> (weight)
                y = MatMul (x, turned)
            }
            """,
            {"weight": random(4, 8)},
        )

    assert_untouched(make, fold_constants)


def arithmetic(body: str, declared: str = "[b, s, 8]") -> Callable[[], ir.Model]:
    text = f"""
    agraph (float[b, s, 8] x) => (float{declared} y)
    <float zero = {{0.0}}, float one = {{1.0}}, float tiny = {{1e-9}}, float almost = {{1.000001}},
     float[1, 1, 1, 1] more_axes = {{1.0}}> {{
        {body}
        y = Neg (r)
    }}
    """
    return lambda: graph(text)


@pytest.mark.parametrize(
    "body",
    [
        "r = Add (x, zero)",
        "r = Add (zero, x)",
        "r = Sub (x, zero)",
        "r = Mul (one, x)",
        "r = Div (x, one)",
        "r = Cast <to: int = 1> (x)",
    ],
)
def test_neutral_nodes_go(body: str) -> None:
    after = assert_same_numbers(arithmetic(body), drop_neutral_nodes, X)
    assert operators(after) == {"Neg": 1}


@pytest.mark.parametrize(
    ("body", "declared"),
    [
        ("r = Add (x, tiny)", "[b, s, 8]"),
        ("r = Mul (x, almost)", "[b, s, 8]"),
        ("r = Sub (zero, x)", "[b, s, 8]"),
        ("r = Div (one, x)", "[b, s, 8]"),
        ("r = Mul (x, more_axes)", "[1, b, s, 8]"),
    ],
)
def test_nodes_that_do_something_stay(body: str, declared: str) -> None:
    assert_untouched(arithmetic(body, declared), drop_neutral_nodes)


def casts(narrow: ir.DataType) -> ir.Model:
    return graph(
        f"""
        agraph (float[n] x) => (float[n] y) {{
            narrow = Cast <to: int = {narrow.value}> (x)
            wide = Cast <to: int = 1> (narrow)
            again = Cast <to: int = {narrow.value}> (wide)
            y = Cast <to: int = 1> (again)
        }}
        """
    )


def test_a_cast_to_a_wider_type_and_back_goes_but_rounding_stays() -> None:
    after = assert_same_numbers(
        lambda: casts(ir.DataType.FLOAT16), drop_neutral_nodes, {"x": random(50)}
    )
    assert operators(after) == {"Cast": 2}
