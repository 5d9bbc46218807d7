"""One product that is split becomes a product for each part."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.separate_projections import separate_projections
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

SIZES = np.array([6, 4, 2])


def projections(body: str, **weights: np.ndarray) -> ir.Model:
    outputs = "float[2,3,6] q, float[2,3,4] k, float[2,3,2] v"
    text = f"agraph (float[2,3,8] x) => ({outputs}) {{ {body} }}"
    return graph(text, {"sizes": SIZES, **weights})


def stored_by_output() -> ir.Model:
    body = "t = Transpose <perm=[1,0]> (w) y = MatMul(x, t) q, k, v = Split <axis=-1> (y, sizes)"
    return projections(body, w=random(12, 8))


def stored_by_input_with_bias() -> ir.Model:
    body = "y = MatMul(x, w) z = Add(b, y) q, k, v = Split <axis=2> (z, sizes)"
    return projections(body, w=random(8, 12), b=random(12, seed=1))


@pytest.mark.parametrize("make", [stored_by_output, stored_by_input_with_bias])
def test_every_part_has_a_product_with_the_same_numbers(make) -> None:
    after = assert_same_numbers(make, separate_projections, {"x": random(2, 3, 8, seed=2)})
    assert "Split" not in operators(after)
    parts = [v for v in after.graph.initializers.values() if "[" in v.name and len(v.shape) == 2]
    assert sorted(v.const_value.size for v in parts) == [16, 32, 48]


def test_a_product_that_is_used_whole_stays() -> None:
    def make() -> ir.Model:
        body = "y = MatMul(x, w) q, k, v = Split <axis=-1> (y, sizes) all = Identity(y)"
        text = f"agraph (float[2,3,8] x) => (float[2,3,6] q, float[2,3,12] all) {{ {body} }}"
        return graph(text, {"sizes": SIZES, "w": random(8, 12)})

    assert_untouched(make, separate_projections)


def test_a_split_along_the_rows_stays() -> None:
    def make() -> ir.Model:
        body = "y = MatMul(x, w) a, b = Split <axis=0> (y, halves)"
        text = f"agraph (float[2,8] x) => (float[1,12] a, float[1,12] b) {{ {body} }}"
        return graph(text, {"halves": np.array([1, 1]), "w": random(8, 12)})

    assert_untouched(make, separate_projections)
