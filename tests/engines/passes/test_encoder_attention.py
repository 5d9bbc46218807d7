"""Attention on rows as products give them, as one operator that is a function of the graph."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.encoder_attention import fuse_encoder_attention
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

SPLIT = "q, k, v = Split <axis = -1, num_outputs = 3> (rows)"
CROSSED = "q, v, k = Split <axis = -1, num_outputs = 3> (rows)"
EXPANDED = """
    length = Shape <start = 1, end = 2> (rows)
    wide = Concat <axis = 0> (one, one, length, one)
    seen = Expand (mask, wide)
"""


def attention(
    *,
    parts: str = SPLIT,
    turned: str = "0, 2, 1, 3",
    mask: str = "bool[b, 1, 1, n]",
    seen: str = EXPANDED,
    more: str = "",
) -> ir.Model:
    lines = " ".join(
        f"{x}4 = Reshape ({x}, heads) {x}t = Transpose <perm = [{turned}]> ({x}4)" for x in "qkv"
    )
    return graph(
        f"""
        agraph (float[b, n, 24] rows, {mask} mask) => (float[b, n, 8] y)
        <int64[4] heads = {{0, 0, 2, 4}}, int64[3] joined = {{0, 0, 8}}, int64[1] one = {{1}}> {{
            {parts} {lines} {seen}
            attended = Attention <scale = 0.5 {more}> (qt, kt, vt, seen)
            back = Transpose <perm = [0, 2, 1, 3]> (attended)
            y = Reshape (back, joined)
        }}
        """
    )


PADDED = np.array([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]], bool)[:, None, None]
FEEDS = {"rows": random(2, 5, 24), "mask": PADDED}


def test_packed_rows() -> None:
    after = assert_same_numbers(attention, fuse_encoder_attention, FEEDS)
    assert operators(after) == {"PackedEncoderAttention": 1}


def test_rows_in_another_order() -> None:
    after = assert_same_numbers(lambda: attention(parts=CROSSED), fuse_encoder_attention, FEEDS)
    assert operators(after) == {"EncoderAttention": 1, "Split": 1}


def test_a_mask_of_each_query() -> None:
    whole = {"mask": "bool[b, 1, n, n]", "seen": "seen = Identity (mask)"}
    window = np.abs(np.arange(5)[:, None] - np.arange(5)) < 3
    feeds = {**FEEDS, "mask": np.broadcast_to(window, (2, 1, 5, 5))}
    after = assert_same_numbers(lambda: attention(**whole), fuse_encoder_attention, feeds)
    assert operators(after)["PackedEncoderAttention"] == 1


@pytest.mark.parametrize(
    "different",
    [
        {"turned": "0, 1, 2, 3"},
        {"more": ", softcap = 3.0"},
        {"more": ", is_causal = 1"},
        {"mask": "bool[b, 2, 1, n]"},
        {"mask": "float[b, 1, 1, n]"},
    ],
)
def test_other_attention_is_left_alone(different: dict[str, str]) -> None:
    assert_untouched(lambda: attention(**different), fuse_encoder_attention)
