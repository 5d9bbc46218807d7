"""An int8 buffer updated by a selection holds what TensorScatter would have put there."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.selected_cache_updates import select_integer_updates
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph


def update(dtype: str = "int8") -> ir.Model:
    arguments = f"{dtype}[b,2,16,4] past, {dtype}[b,2,s,4] new, int64[b] lengths"
    body = "present = TensorScatter <axis=2> (past, new, lengths)"
    return graph(f"agraph ({arguments}) => ({dtype}[b,2,16,4] present) {{ {body} }}")


@pytest.mark.parametrize(
    ("lengths", "sequence"),
    [([0, 0], 1), ([7, 2], 1), ([7, 2], 5), ([0, 11], 5), ([15, 3], 1), ([0, 0], 16)],
)
def test_selection_is_scatter(lengths: list[int], sequence: int) -> None:
    random = np.random.default_rng(0)
    inputs = {
        "past": random.integers(-128, 128, (2, 2, 16, 4)).astype(np.int8),
        "new": random.integers(-128, 128, (2, 2, sequence, 4)).astype(np.int8),
        "lengths": np.array(lengths),
    }
    after = assert_same_numbers(update, select_integer_updates, inputs)
    assert "TensorScatter" not in operators(after)


def test_floating_point_buffers_keep_their_update() -> None:
    assert_untouched(lambda: update("float"), select_integer_updates)
