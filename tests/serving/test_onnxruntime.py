"""The ONNX Runtime engine on a hand-written graph, against ONNX's reference evaluator."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from serving.bundle import DType
from serving.engine import FloatArray, as_float32
from serving.errors import UserError
from serving.kv_cache import HostBuffer
from serving.onnxruntime import OnnxRuntimeEngine, physical_cores
from tests.serving.tiny_graph import graph_info, save_graph

CAPACITY, SLOTS = 16, 3
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}


def open_engine(tmp_path: Path, dtype: DType = "float32") -> OnnxRuntimeEngine:
    file = save_graph(tmp_path / "model.onnx", dtype)
    return OnnxRuntimeEngine(file, graph_info(dtype), slots=SLOTS, capacity=CAPACITY)


def ids_of(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def reference(tmp_path: Path, ids: list[int]) -> FloatArray:
    """Logits [n, vocab] of all positions at once, by ONNX's own evaluator in float32."""
    graph = onnx.load(save_graph(tmp_path / "reference.onnx"))
    empty = np.zeros((1, 2, CAPACITY, 4), np.float32)
    outputs = ReferenceEvaluator(graph).run(
        ["logits"],
        {
            "input_ids": ids_of(ids),
            "past_lengths": np.array([0]),
            "logits_positions": np.arange(len(ids))[None],
            "past_key_values.0.key": empty,
            "past_key_values.0.value": empty,
        },
    )
    logits: FloatArray = np.asarray(outputs[0])[0]
    return logits


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_prefill_equals_the_reference(tmp_path: Path, dtype: DType) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2]
    with open_engine(tmp_path, dtype) as engine:
        logits = engine.step(ids_of(ids), np.array([0]), np.arange(7)[None])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], reference(tmp_path, ids), atol=TOLERANCE[dtype])


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_chunks_equal_the_whole(tmp_path: Path, slot: int) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2]
    with open_engine(tmp_path) as engine:
        for start, stop in [(0, 3), (3, 4), (4, 7)]:
            last = np.array([[stop - start - 1]])
            logits = engine.step(ids_of(ids[start:stop]), np.array([start]), last, slot)
    np.testing.assert_allclose(logits[0, 0], reference(tmp_path, ids)[-1], atol=1e-5)


def test_ragged_rows_decode_together(tmp_path: Path) -> None:
    rows = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    with open_engine(tmp_path) as engine:
        for slot, ids in enumerate(rows):
            engine.step(ids_of(ids), np.array([0]), np.array([[0]]), slot)
        lengths = np.array([len(ids) for ids in rows])
        logits = engine.step(ids_of([7], [8], [9]), lengths, np.zeros((3, 1), np.int64))
        for slot, ids in enumerate(rows):
            expected = reference(tmp_path, [*ids, 7 + slot])[-1]
            np.testing.assert_allclose(logits[slot, 0], expected, atol=1e-5)


def test_the_cache_is_updated_in_place_and_only_where_it_must(tmp_path: Path) -> None:
    with open_engine(tmp_path) as engine:
        addresses = [buffer.address for buffer in engine.cache.buffers.values()]
        engine.step(ids_of([1, 2, 3]), np.array([2]), np.array([[0]]), 1)
        assert [buffer.address for buffer in engine.cache.buffers.values()] == addresses
        for buffer in engine.cache.buffers.values():
            assert isinstance(buffer, HostBuffer)
            written = buffer.array.any(axis=(1, 3))
            assert np.argwhere(written).tolist() == [[1, 2], [1, 3], [1, 4]]
        rows = {engine.cache.rows(0, part, 1, 1)[0] for part in ("key", "value")}
        binding = engine._bindings[1, 1, "logits", False]
        assert rows < {value.data_ptr() for value in binding.get_outputs()}


def test_decode_reuses_its_binding_and_its_logits_buffer(tmp_path: Path) -> None:
    with open_engine(tmp_path) as engine:
        zeros = np.zeros((2, 1), np.int64)
        first = engine.step(ids_of([1], [2]), np.array([0, 0]), zeros)
        kept = first.copy()
        bindings = dict(engine._bindings)
        second = engine.step(ids_of([3], [4]), np.array([1, 1]), zeros)
        assert second.ctypes.data == first.ctypes.data
        assert engine._bindings == bindings
        assert not np.array_equal(second, kept)


def test_tokens_beyond_the_capacity_never_reach_the_engine(tmp_path: Path) -> None:
    with open_engine(tmp_path) as engine, pytest.raises(ValueError, match="capacity of 16"):
        engine.step(ids_of([1, 2]), np.array([CAPACITY - 1]), np.array([[0]]))


def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    # They would be read by address: as something else.
    with open_engine(tmp_path) as engine:
        for wrong in (np.array([[1, 2]], np.int32), np.zeros((1, 6), np.int64)[:, ::2]):
            with pytest.raises(ValueError, match="contiguous int64"):
                engine.step(wrong, np.array([0]), np.array([[0]]))


def test_a_broken_graph_is_one_sentence(tmp_path: Path) -> None:
    file = save_graph(tmp_path / "model.onnx")
    file.write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"can't open .*export the model again"):
        OnnxRuntimeEngine(file, graph_info(), slots=1, capacity=4)


def test_bfloat16_bits_become_float32() -> None:
    values = np.float32([0, 1, -2.5, 1e30, np.inf])
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(as_float32(bits, "bfloat16"), expected)


def test_physical_cores_are_counted() -> None:
    assert 1 <= physical_cores() <= 4096
