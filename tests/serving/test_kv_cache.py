"""The KV cache: one allocation, views by address, slots that move."""

import ctypes

import numpy as np
import psutil
import pytest

from serving.bundle import LayerInfo
from serving.errors import UserError
from serving.kv_cache import ALIGNMENT, HostBuffer, KVCache

LAYERS = (
    LayerInfo(kv_heads=2, key_dim=4, value_dim=6),
    LayerInfo(kv_heads=1, key_dim=8, value_dim=8),
)


def filled() -> KVCache:
    cache = KVCache(LAYERS, "float32", slots=3, capacity=5)
    for seed, buffer in enumerate(cache.buffers.values()):
        assert isinstance(buffer, HostBuffer)
        buffer.array[:] = np.random.default_rng(seed).standard_normal(buffer.shape)
    return cache


def read(address: int, shape: tuple[int, ...]) -> np.ndarray:
    memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(memory, np.float32).reshape(shape)


def test_buffers_are_zero_aligned_and_sized_by_layer_and_part() -> None:
    cache = KVCache(LAYERS, "float16", slots=3, capacity=5)
    shapes = {key: buffer.shape for key, buffer in cache.buffers.items()}
    assert shapes[0, "key"] == (3, 2, 5, 4)
    assert shapes[0, "value"] == (3, 2, 5, 6)
    assert shapes[1, "key"] == shapes[1, "value"] == (3, 1, 5, 8)
    assert cache.nbytes == 2 * 3 * 5 * (2 * 10 + 16)
    for buffer in cache.buffers.values():
        assert isinstance(buffer, HostBuffer)
        assert buffer.address % ALIGNMENT == 0
        assert not buffer.array.any()


def test_rows_are_views_of_the_same_memory() -> None:
    cache = filled()
    for (layer, part), buffer in cache.buffers.items():
        assert isinstance(buffer, HostBuffer)
        for first, n in [(0, 3), (0, 1), (1, 2), (2, 1)]:
            view = read(*cache.rows(layer, part, first, n))
            np.testing.assert_array_equal(view, buffer.array[first : first + n])


@pytest.mark.parametrize(("first", "n"), [(0, 4), (3, 1), (-1, 1), (0, 0)])
def test_rows_beyond_the_slots_are_refused(first: int, n: int) -> None:
    with pytest.raises(ValueError, match="of 3"):
        filled().rows(0, "key", first, n)


def test_move_copies_the_valid_part_of_one_slot_and_nothing_else() -> None:
    cache, before = filled(), filled()
    cache.move(2, 0, 4)
    for key, buffer in cache.buffers.items():
        old = before.buffers[key]
        assert isinstance(buffer, HostBuffer)
        assert isinstance(old, HostBuffer)
        np.testing.assert_array_equal(buffer.array[0, :, :4], old.array[2, :, :4])
        np.testing.assert_array_equal(buffer.array[0, :, 4:], old.array[0, :, 4:])
        np.testing.assert_array_equal(buffer.array[1:], old.array[1:])


def test_move_leaves_out_what_is_equal_already() -> None:
    cache, before = filled(), filled()
    cache.move(1, 2, 4, start=2)
    for key, buffer in cache.buffers.items():
        old = before.buffers[key]
        assert isinstance(buffer, HostBuffer)
        assert isinstance(old, HostBuffer)
        np.testing.assert_array_equal(buffer.array[2, :, 2:4], old.array[1, :, 2:4])
        np.testing.assert_array_equal(buffer.array[2, :, :2], old.array[2, :, :2])
        np.testing.assert_array_equal(buffer.array[2, :, 4:], old.array[2, :, 4:])
        np.testing.assert_array_equal(buffer.array[:2], old.array[:2])


def test_capacity_that_is_not_used_takes_no_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = KVCache(LAYERS, "float32", slots=4, capacity=1_000_000)
    assert cache.nbytes > 500e6
    assert process.memory_info().rss - before < 20e6


def test_buffers_too_large_for_the_machine_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"KV buffers need .* GB.*fewer slots"):
        KVCache(LAYERS, "float32", slots=4, capacity=10**14)
