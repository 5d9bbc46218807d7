"""Products, biases and what follows them become one operator, a function of the graph."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.block_quantized_weights import lower_block_quantized_weights
from engines.passes.fused_linears import fuse_linears
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

WEIGHTS = {"weight": random(6, 8), "bias": random(6, seed=1), "row": random(6, seed=2)}
X = {"x": random(2, 3, 8, seed=3)}
TURNED = "turned = Transpose <perm = [1, 0]> (weight) product = MatMul (x, turned)"


def linear(body: str, *, product: str = TURNED, **weights: np.ndarray) -> ir.Model:
    text = f"agraph (float[b, n, 8] x) => (float[b, n, 6] y) {{ {product} {body} }}"
    return graph(text, WEIGHTS | weights)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Add (product, bias)", {"Linear": 1}),
        ("y = Add (bias, product)", {"Linear": 1}),
        ("y = Neg (product)", {"Linear": 1, "Neg": 1}),
        ("sum = Add (product, bias) y = Gelu (sum)", {"LinearGelu": 1}),
        ("y = Gelu (product)", {"LinearGelu": 1}),
        (
            "sum = Add (product, bias) r = Abs (sum) y = Add (sum, r)",
            {"Linear": 1, "Abs": 1, "Add": 1},
        ),
        ('sum = Add (product, bias) y = Gelu <approximate = "tanh"> (sum)', None),
        ("sum = Add (product, bias) y = Add (sum, row)", {"Linear": 1, "Add": 1}),
    ],
)
def test_what_follows_a_product(body: str, expected: dict[str, int] | None) -> None:
    after = assert_same_numbers(lambda: linear(body), fuse_linears, X)
    assert operators(after) == (expected or {"Linear": 1, "Gelu": 1})


@pytest.mark.parametrize("end", ["y = Add (sum, r)", "y = Add (r, sum)"])
def test_residual(end: str) -> None:
    before = "r = Gather <axis = -1> (x, six)"
    six = np.arange(6)
    body = f"{before} sum = Add (product, bias) {end}"
    after = assert_same_numbers(lambda: linear(body, six=six), fuse_linears, X)
    assert operators(after) == {"Gather": 1, "LinearAdd": 1}


def test_layers_behind_each_other() -> None:
    body = """
        s0 = Add (product, bias) a0 = Gelu (s0)
        p1 = MatMul (a0, square) s1 = Add (p1, bias) a1 = Add (s1, a0)
        p2 = MatMul (a1, last) y = Add (p2, bias)
    """
    squares = {"square": random(6, 6, seed=4), "last": random(6, 6, seed=5)}
    after = assert_same_numbers(lambda: linear(body, **squares), fuse_linears, X)
    assert operators(after) == {"LinearGelu": 1, "LinearAdd": 1, "Linear": 1}


def test_a_weight_that_two_products_read() -> None:
    body = "sum = Add (product, bias) a = MatMul (sum, square) y = MatMul (a, square)"
    square = {"square": random(6, 6, seed=4)}
    after = assert_same_numbers(lambda: linear(body, **square), fuse_linears, X)
    assert operators(after) == {"Linear": 1, "MatMul": 2}


def test_products_that_two_read_are_left_apart() -> None:
    body = "sum = Add (product, bias) gelu = Gelu (sum) y = Mul (sum, gelu)"
    after = assert_same_numbers(lambda: linear(body), fuse_linears, X)
    assert operators(after) == {"Linear": 1, "Gelu": 1, "Mul": 1}


def test_integers() -> None:
    integers = np.random.default_rng(0).integers(-128, 128, (6, 64)).astype(np.int8)
    scales = np.full((6, 1), 0.01, np.float32)

    def make(block: int) -> ir.Model:
        model = graph(
            f"""
            agraph (float[b, n, 64] x) => (float[b, n, 6] y) {{
                whole = DequantizeLinear <axis = 1, block_size = {block}> (integers, scales)
                turned = Transpose <perm = [1, 0]> (whole)
                product = MatMul (x, turned)
                sum = Add (product, bias)
                y = Gelu (sum)
            }}
            """,
            WEIGHTS | {"integers": integers, "scales": np.repeat(scales, 64 // block, 1)},
        )
        lower_block_quantized_weights(model)
        return model

    model = make(64)
    fuse_linears(model)
    assert operators(model) == {"IntegerLinearGelu": 1}
    assert_untouched(lambda: make(32), fuse_linears)
