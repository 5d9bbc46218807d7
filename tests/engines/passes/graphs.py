"""Running graphs before and after a pass, on the same numbers."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime

from serving.contract import INPUT_IDS, LOGITS_POSITIONS, PAST_LENGTHS
from tests.engines.tensorrt.decoder_graph import DIM, KV_HEADS, VOCAB

Arrays = dict[str, np.ndarray]
CAPACITY = 16


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def feeds(model: ir.Model, *, past: list[int], sequence: int, capacity: int = CAPACITY) -> Arrays:
    """Inputs of a decoder: rows with pasts of these lengths, and ``sequence`` new tokens each."""
    random = np.random.default_rng(1)
    rows = len(past)
    arrays: Arrays = {
        INPUT_IDS: random.integers(0, VOCAB, (rows, sequence)),
        PAST_LENGTHS: np.array(past),
        LOGITS_POSITIONS: np.tile(np.arange(sequence), (rows, 1)),
    }
    for value in model.graph.inputs[3:]:
        dtype = value.dtype.numpy()
        cache = random.standard_normal((rows, KV_HEADS, capacity, DIM))
        arrays[value.name] = cache.astype(dtype)
    return arrays


def run(model: ir.Model, inputs: Arrays, *outputs: str) -> Arrays:
    """Run a graph in ONNX Runtime and return these outputs, or all."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = list(outputs) or [output.name for output in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def assert_close(got: Arrays, expected: Arrays, tolerance: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=tolerance, err_msg=name)
