"""Float8 weights become the floats that they stand for."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.widened_float8 import widen_float8_weights
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

INPUTS = {"ids": np.array([[3, 0, 11], [7, 7, 1]]), "x": random(2, 3, 8, seed=2)}
LAYOUTS = {
    "tensor": ("axis=0", ()),
    "rows": ("axis=0", (12,)),
    "columns": ("axis=1", (8,)),
    "blocks": ("axis=1, block_size=4", (12, 2)),
    "blocks, turned": ("axis=0, block_size=4", (3, 8)),
}


def tied(layout: str, scales: tuple[int, ...], dtype: type) -> ir.Model:
    """A weight [12, 8] that is gathered by token and multiplied with."""
    numbers = random(12, 8, seed=3).astype(dtype)
    body = (
        f"w = DequantizeLinear <{layout}> (numbers, scales) rows = Gather(w, ids) "
        "t = Transpose <perm=[1,0]> (w) y = MatMul(x, t)"
    )
    text = (
        "agraph (int64[2,3] ids, float[2,3,8] x) => (float[2,3,8] rows, float[2,3,12] y) "
        f"{{ {body} }}"
    )
    shape = np.abs(random(*scales, seed=1)) if scales else np.array(0.5, np.float32)
    return graph(text, {"numbers": numbers, "scales": shape})


@pytest.mark.parametrize(("layout", "scales"), LAYOUTS.values(), ids=LAYOUTS)
def test_weights_are_floats(layout: str, scales: tuple[int, ...]) -> None:
    after = assert_same_numbers(
        lambda: tied(layout, scales, ml_dtypes.float8_e4m3fn), widen_float8_weights, INPUTS
    )
    assert operators(after) == {"Gather": 1, "Transpose": 1, "MatMul": 1}
    assert all(
        value.dtype != ir.DataType.FLOAT8E4M3FN for value in after.graph.initializers.values()
    )


def test_integers_stay() -> None:
    assert_untouched(lambda: tied("axis=0", (12,), np.int8), widen_float8_weights)
