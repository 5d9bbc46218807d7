"""Which address each tensor of a step gets, and how a row's tokens are split."""

import itertools

import numpy as np
import pytest

from serving.bundle import LayerInfo
from serving.kv_cache import KVCache
from serving.tensorrt.bindings import (
    Binding,
    bind_cache,
    bind_inputs,
    bind_logits,
    lay_out_inputs,
    split_row,
)

LAYERS = (
    LayerInfo(kv_heads=2, key_dim=16, value_dim=32),
    LayerInfo(kv_heads=1, key_dim=16, value_dim=16),
)


def test_past_and_present_share_the_rows_of_their_slots() -> None:
    cache = KVCache(LAYERS, "float16", slots=4, capacity=8)
    bound = {binding.name: binding for binding in bind_cache(cache, 1, 2)}
    assert len(bound) == 8
    # A row has heads x 8 positions x dim x 2 bytes.
    rows = {"0.key": (512, 2, 16), "0.value": (1024, 2, 32), "1.key": (256, 1, 16)}
    rows["1.value"] = rows["1.key"]
    for name, (row, heads, dim) in rows.items():
        index, part = name.split(".")
        base = cache.buffers[int(index), part].address  # type: ignore[index]
        past, present = bound[f"past_key_values.{name}"], bound[f"present.{name}"]
        assert (past.address, past.shape) == (base + row, (2, heads, 8, dim))
        assert (present.address, present.shape) == (base + row, None)


def test_slots_that_are_not_there_are_refused() -> None:
    cache = KVCache(LAYERS, "float16", slots=4, capacity=8)
    with pytest.raises(ValueError, match="no slots 3 to 4 of 4"):
        list(bind_cache(cache, 3, 2))


def test_small_inputs_lie_in_one_block() -> None:
    layout = lay_out_inputs(rows=1, tokens=100, positions=33)
    assert (layout.input_ids, layout.past_lengths, layout.logits_positions) == (0, 1024, 1280)
    assert layout.nbytes == 1280 + 512
    assert list(bind_inputs(layout, 4096, rows=1, tokens=7, positions=2)) == [
        Binding("input_ids", 4096, (1, 7)),
        Binding("past_lengths", 4096 + 1024, (1,)),
        Binding("logits_positions", 4096 + 1280, (1, 2)),
    ]
    assert bind_logits(512) == Binding("logits", 512, None)


@pytest.mark.parametrize("rows", [1, 3, 32, 33])
def test_inputs_are_aligned_and_do_not_overlap(rows: int) -> None:
    layout = lay_out_inputs(rows, tokens=1, positions=1)
    starts = [layout.input_ids, layout.past_lengths, layout.logits_positions, layout.nbytes]
    assert all(start % 256 == 0 for start in starts)
    assert all(b - a >= rows * 8 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(
    ("tokens", "positions", "chunk", "room", "expected"),
    [
        (3, [2], 4, 2, [(0, 3, [0])]),
        (4, [3, 0], 4, 2, [(0, 4, [0, 1])]),
        # The first chunk gives no logits.
        (9, [8], 4, 2, [(0, 4, []), (4, 8, []), (8, 9, [0])]),
        (6, [5, 0, 3, 4], 4, 4, [(0, 4, [1, 2]), (4, 6, [0, 3])]),
        # More positions than a chunk has room for: shorter chunks.
        (5, [0, 1, 2, 3, 4], 4, 2, [(0, 2, [0, 1]), (2, 4, [2, 3]), (4, 5, [4])]),
    ],
)
def test_rows_are_split_into_what_the_engine_takes(
    tokens: int,
    positions: list[int],
    chunk: int,
    room: int,
    expected: list[tuple[int, int, list[int]]],
) -> None:
    parts = split_row(tokens, np.array(positions), chunk, room)
    assert [(part.start, part.stop, indices.tolist()) for part, indices in parts] == expected


def test_positions_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 2 positions"):
        list(split_row(4, np.array([1, 1, 1]), 4, 2))
