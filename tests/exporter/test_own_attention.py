"""Attention that is written out in a model's own code becomes one node."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from exporter.traits.own_attention import fuse_own_attention
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, graph, random

CAPACITY, PAST, NEW = 8, 3, 2


def fuse(model: ir.Model) -> None:
    fuse_own_attention(model)
    common.RemoveUnusedNodesPass()(model)


@pytest.mark.parametrize("lowest", [-65504.0, float(np.finfo(np.float32).min)])
def test_a_floor_under_the_scores_of_either_type_is_left_out(lowest: float) -> None:
    def make() -> ir.Model:
        text = f"""
            agraph (float[1,2,{NEW},4] q, float[1,2,{NEW},4] k, float[1,2,{CAPACITY},4] past,
                    int64[1] lengths, float[1,1,{NEW},{CAPACITY}] mask)
                => (float[1,2,{NEW},4] y) {{
                present = TensorScatter <axis=2> (past, k, lengths)
                turned = Transpose <perm=[0, 1, 3, 2]> (present)
                scores = MatMul (q, turned)
                masked = Add (scores, mask)
                finite = Max (masked, lowest)
                weights = Softmax <axis=-1> (finite)
                read = MatMul (weights, present)
                y = Neg (read)
            }}
        """
        return graph(text, {"lowest": np.array(lowest, np.float32)})

    seen = np.arange(CAPACITY) <= PAST + np.arange(NEW)[:, None]
    inputs = {
        "q": random(1, 2, NEW, 4),
        "k": random(1, 2, NEW, 4, seed=1),
        "past": random(1, 2, CAPACITY, 4, seed=2),
        "lengths": np.array([PAST]),
        "mask": np.where(seen, 0, lowest).astype(np.float32)[None, None],
    }
    after = assert_same_numbers(make, fuse, inputs)
    assert operators(after) == {"TensorScatter": 1, "Attention": 1, "Neg": 1}
