"""Ranges of activations over token windows, against a graph run by hand."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx.reference import ReferenceEvaluator

from engines.activation_ranges import activation_ranges, out_of_range
from serving.contract import INPUT_IDS, LOGITS_POSITIONS, PARTS, PAST_LENGTHS, past_name
from tests.engines.passes.graphs import operators
from tests.engines.tensorrt.decoder_graph import CAUSAL, DIM, KV_HEADS, VOCAB, decoder


def test_largest_of_all_windows(tmp_path: Path) -> None:
    model = decoder(CAUSAL)
    for node in model.graph:
        node.name = node.name or f"{node.outputs[0].name}/{node.op_type}"
    common.ShapeInferencePass()(model)
    before = operators(model)
    random = np.random.default_rng(5)
    windows = [random.integers(0, VOCAB, length) for length in (7, 5)]
    got = activation_ranges(model, windows, tmp_path)
    assert operators(model) == before
    assert not list(tmp_path.iterdir())

    wanted = {"query0_flat": "query0_flat/MatMul", "x1": "x1/Add", "logits": "lm_head/MatMul"}
    proto = ir.to_proto(model)
    evaluator = ReferenceEvaluator(proto)
    largest = dict.fromkeys(wanted.values(), 0.0)
    for window in windows:
        size = len(window)
        feeds = {
            INPUT_IDS: window[None],
            PAST_LENGTHS: np.zeros(1, np.int64),
            LOGITS_POSITIONS: np.arange(size)[None],
        }
        for part in PARTS:
            feeds[past_name(0, part)] = np.zeros((1, KV_HEADS, size, DIM), np.float32)
        results = evaluator.run(list(wanted), feeds, intermediate=True)
        for value, node in wanted.items():
            largest[node] = max(largest[node], float(np.abs(results[value]).max()))
    for node, number in largest.items():
        assert abs(got[node] - number) < 1e-5 * number


def test_what_is_out_of_range() -> None:
    ranges = {"small": 3.0, "near": 33000.0, "beyond": float("inf"), "broken": float("nan")}
    assert out_of_range(ranges) == {"near", "beyond", "broken"}
    assert out_of_range(ranges, 65504.0) == {"beyond", "broken"}
