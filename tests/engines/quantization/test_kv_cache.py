"""An INT8 KV cache: what is stored, what is read, and every way of running it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from engines import onnxruntime as onnxruntime_target
from engines.quantization.kv_cache import cache_scales, largest_entries, quantize_kv_cache
from serving.bundle import GraphInfo, LayerInfo
from serving.contract import PARTS, PAST_LENGTHS, past_name, present_name
from serving.kv_cache import HostBuffer
from serving.onnxruntime import OnnxRuntimeEngine
from tests.engines.passes.graphs import CAPACITY, Arrays, assert_close, feeds, operators, run
from tests.engines.passes.test_group_query_attention import STEPS, standard, valid
from tests.engines.tensorrt.decoder_graph import CAPPED, CAUSAL, DIM, KV_HEADS, VOCAB, WINDOW
from tests.engines.tensorrt.decoder_graph import decoder as without_named_windows

LAYERS = (CAUSAL, WINDOW, CAPPED)
PASTS = [past_name(layer, part) for layer in range(len(LAYERS)) for part in PARTS]


def largest(pasts: list[str] = PASTS) -> dict[str, np.ndarray]:
    """Ranges that differ by head and channel, and that a few entries exceed."""
    random = np.random.default_rng(4)
    return {past: random.uniform(0.2, 2, (KV_HEADS, DIM)).astype(np.float32) for past in pasts}


def quantized() -> ir.Model:
    model = standard(*LAYERS)
    quantize_kv_cache(model, largest())
    return model


def lowered() -> ir.Model:
    model = quantized()
    onnxruntime_target.lower(model)
    return model


def integer_feeds(model: ir.Model, past: list[int], sequence: int) -> Arrays:
    arrays = feeds(model, past=past, sequence=sequence)
    random = np.random.default_rng(7)
    for name in sorted(arrays.keys() & set(PASTS)):
        arrays[name] = random.integers(-127, 128, arrays[name].shape, dtype=np.int8)
    return arrays


def rounded(entries: np.ndarray, largest: np.ndarray) -> np.ndarray:
    scales = largest[:, None, :] / 127
    return np.clip(np.rint(entries / scales), -128, 127).astype(np.int8)


def test_the_buffers_hold_the_new_entries_rounded() -> None:
    floating, ranges = standard(*LAYERS), largest()
    inputs = feeds(floating, past=[0, 0], sequence=5)
    expected = run(floating, inputs)
    stored = {past: np.zeros((2, KV_HEADS, CAPACITY, DIM), np.int8) for past in PASTS}
    got = ReferenceEvaluator(ir.to_proto(quantized())).run(None, {**inputs, **stored})
    # The first layer's entries don't depend on any cache.
    for past, present in zip(PASTS[:2], got[1:3], strict=True):
        floats = expected[past.replace("past_key_values", "present")][:, :, :5]
        assert present.dtype == np.int8
        np.testing.assert_array_equal(present[:, :, :5], rounded(floats, ranges[past]))
        assert not present[:, :, 5:].any()
        assert present.min() == -128 or present.max() == 127  # what exceeds its range saturates


def test_attention_reads_what_the_integers_stand_for() -> None:
    """A float graph over the dequantised buffers gives the same, where nothing new is rounded."""
    integers, floats, ranges = quantized(), standard(*LAYERS), largest()
    for layer in range(len(LAYERS)):  # new entries of zero are exact in both
        for part in PARTS:
            for model in (integers, floats):
                weight = model.graph.initializers[f"{part}{layer}_weight"]
                weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()))
    inputs = integer_feeds(integers, past=[7, 2], sequence=3)
    dequantized = {
        past: inputs[past] * ranges[past][:, None, :] / np.float32(127) for past in PASTS
    }
    expected = run(floats, {**inputs, **dequantized}, "logits")
    assert_close(run(integers, inputs, "logits"), expected)


@pytest.mark.parametrize(("past", "sequence"), STEPS.values(), ids=STEPS)
def test_lowered_numbers_are_those_of_the_reference(past: list[int], sequence: int) -> None:
    standard_graph, fast = quantized(), lowered()
    inputs = integer_feeds(standard_graph, past, sequence)
    names = [output.name for output in standard_graph.graph.outputs]
    reference = ReferenceEvaluator(ir.to_proto(standard_graph)).run(None, inputs)
    expected = valid(dict(zip(names, reference, strict=True)), inputs, sequence)
    for model in (standard_graph, fast):
        got = valid(run(model, inputs, *names), inputs, sequence)
        for name in names[1:]:
            np.testing.assert_array_equal(got[name], expected[name])
        assert_close(got, expected)


def test_every_int8_buffer_is_read_as_it_is() -> None:
    before, after = operators(quantized()), operators(lowered())
    assert (before["QuantizeLinear"], before["DequantizeLinear"]) == (6, 6)
    assert after["GroupQueryAttention"] == 3
    assert not {"QuantizeLinear", "DequantizeLinear", "TensorScatter", "Div"} & after.keys()
    onnx.checker.check_model(ir.to_proto(quantized()), full_check=True)


def test_what_no_fused_operator_takes_dequantises_the_valid_part_alone() -> None:
    """An unnamed mask, and half precision: both stay standard."""
    for model in (without_named_windows(WINDOW), without_named_windows(CAUSAL, dtype="float16")):
        quantize_kv_cache(model, largest(PASTS[:2]))
        expected = model.clone()
        onnxruntime_target.lower(model)
        assert operators(model)["GroupQueryAttention"] == 0
        inputs = feeds(model, past=[7, 2], sequence=3)
        names = [output.name for output in expected.graph.outputs]
        assert_close(run(model, inputs, *names), run(expected, inputs), 2e-3)
        sliced = [n for n in model.graph if n.op_type == "DequantizeLinear"]
        assert {node.inputs[0].producer().op_type for node in sliced} == {"Slice"}


def test_ranges_come_from_the_windows(tmp_path: Path) -> None:
    model = standard(*LAYERS)
    windows = [np.arange(4), np.array([9, 3, 9])]
    found = largest_entries(model, windows, tmp_path)
    assert set(found) == set(PASTS)
    for layer in range(len(LAYERS)):
        for part in PARTS:
            seen = []
            for window in windows:
                inputs = feeds(model, past=[0], sequence=len(window), capacity=len(window))
                inputs |= {"input_ids": window[None], PAST_LENGTHS: np.zeros(1, np.int64)}
                name = present_name(layer, part)
                seen.append(np.abs(run(model, inputs, name)[name]).max(axis=(0, 2)))
            expected = np.maximum(*seen)
            np.testing.assert_allclose(found[past_name(layer, part)], expected, rtol=1e-5)


def test_a_channel_that_is_never_used_has_a_scale_of_one() -> None:
    scales = cache_scales(np.float32([[0, 254], [127, 0]]))
    np.testing.assert_array_equal(scales, np.float32([[1, 2], [1, 1]])[None, :, None, :])


class TestServing:
    """The engine that serves, however it runs, against one pass of the reference evaluator."""

    ROWS = ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8], [1, 6, 1, 8, 0, 3])

    @pytest.fixture
    def engine(self, tmp_path: Path) -> OnnxRuntimeEngine:
        onnxruntime_target.write(lowered(), tmp_path)
        layer = LayerInfo(kv_heads=KV_HEADS, key_dim=DIM, value_dim=DIM)
        info = GraphInfo(
            contract_version=1,
            vocab_size=VOCAB,
            dtype="float32",
            quantized_cache="int8",
            layers=(layer,) * len(LAYERS),
            max_length=CAPACITY,
        )
        return OnnxRuntimeEngine(tmp_path / "model.onnx", info, slots=3, capacity=CAPACITY)

    @staticmethod
    def reference(tokens: list[int]) -> np.ndarray:
        inputs: Arrays = {
            "input_ids": np.array([tokens]),
            PAST_LENGTHS: np.zeros(1, np.int64),
            "logits_positions": np.array([[len(tokens) - 1]]),
        }
        empty = {past: np.zeros((1, KV_HEADS, CAPACITY, DIM), np.int8) for past in PASTS}
        return ReferenceEvaluator(ir.to_proto(quantized())).run(["logits"], {**inputs, **empty})[0]

    @staticmethod
    def prefill(engine: OnnxRuntimeEngine, tokens: list[int], slot: int, chunk: int) -> np.ndarray:
        for start in range(0, len(tokens), chunk):
            ids = np.array([tokens[start : start + chunk]])
            last = np.array([[ids.shape[1] - 1]])
            logits = engine.step(ids, np.array([start]), last, slot)
        return logits.copy()

    def test_chunks_and_a_ragged_batch(self, engine: OnnxRuntimeEngine) -> None:
        for slot, row in enumerate(self.ROWS):
            got = self.prefill(engine, row, slot, chunk=3)
            np.testing.assert_allclose(got, self.reference(row), atol=1e-5)
        lengths = np.array([len(row) for row in self.ROWS])
        got = engine.step(np.array([[7], [8], [9]]), lengths, np.zeros((3, 1), np.int64))
        for slot, row in enumerate(self.ROWS):
            expected = self.reference([*row, 7 + slot])
            np.testing.assert_allclose(got[slot : slot + 1], expected, atol=1e-5)

    def test_going_back_and_moving_a_slot(self, engine: OnnxRuntimeEngine) -> None:
        row, zero = self.ROWS[0], np.zeros((1, 1), np.int64)
        self.prefill(engine, row, 2, chunk=8)
        engine.cache.move(2, 0, 5)
        got = engine.step(np.array([[11]]), np.array([5]), zero, 0)
        np.testing.assert_allclose(got, self.reference([*row[:5], 11]), atol=1e-5)

    def test_the_buffers_take_a_quarter_and_start_as_zeros(self, engine: OnnxRuntimeEngine) -> None:
        assert engine.cache.nbytes == 3 * CAPACITY * len(LAYERS) * 2 * KV_HEADS * DIM
        for buffer in engine.cache.buffers.values():
            assert isinstance(buffer, HostBuffer)
            assert buffer.array.dtype == np.int8
            assert not buffer.array.any()
        address = engine.cache.rows(0, "key", 1, 1)[0]
        self.prefill(engine, [5, 6], 1, chunk=2)
        assert engine.cache.rows(0, "key", 1, 1)[0] == address
        assert engine.cache.buffers[0, "key"].array[1, :, :2].any()
