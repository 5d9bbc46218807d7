"""A constant index becomes a slice; tables and indices that are computed stay."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.constant_indices import slice_constant_indices
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random


@pytest.mark.parametrize("index", [np.array(1), np.array(-1), np.array([2])], ids=str)
@pytest.mark.parametrize("axis", [2, -2])
def test_a_constant_index_becomes_a_slice_with_the_same_numbers(
    index: np.ndarray, axis: int
) -> None:
    def make() -> ir.Model:
        shape = "2,4,5" if index.ndim == 0 else "2,4,1,5"
        body = f"y = Gather <axis={axis}> (x, index)"
        return graph(
            f"agraph (float[2,4,3,5] x) => (float[{shape}] y) {{ {body} }}", {"index": index}
        )

    after = assert_same_numbers(make, slice_constant_indices, {"x": random(2, 4, 3, 5)})
    assert "Gather" not in operators(after)


LEFT_ALONE = {
    "a row of a table": "y = Gather <axis=0> (table, one) z = Add(x, y)",
    "several indices": "z = Gather <axis=0> (x, both)",
    "an index that is computed": "i = Add(one, count) z = Gather <axis=0> (x, i)",
    "a size": "s = Shape(x) n = Gather <axis=0> (s, one) z = Expand(x, n)",
}


@pytest.mark.parametrize("body", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_stays(body: str) -> None:
    def make() -> ir.Model:
        text = f"agraph (float[3,4] x, int64[1] count) => (float[N,4] z) {{ {body} }}"
        weights = {"table": random(3, 4), "one": np.array([1]), "both": np.array([0, 2])}
        return graph(text, weights)

    assert_untouched(make, slice_constant_indices)
