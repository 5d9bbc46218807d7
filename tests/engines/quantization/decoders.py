"""Logits of tiny decoders in ONNX Runtime as the nodes say, unoptimised."""

import numpy as np
import onnx_ir as ir
import onnxruntime

from serving.contract import INPUT_IDS, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS

TOKENS = np.random.default_rng(4).integers(3, 500, (1, 21))


def logits(model: ir.Model, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Logits [batch, n, vocab] of a standard graph at every position."""
    rows, count = tokens.shape
    feeds = {
        INPUT_IDS: tokens,
        PAST_LENGTHS: np.zeros(rows, np.int64),
        LOGITS_POSITIONS: np.tile(np.arange(count), (rows, 1)),
    }
    for value in model.graph.inputs[3:]:
        heads, dim = value.shape[1], value.shape[3]
        feeds[value.name] = np.zeros((rows, heads, count, dim), value.dtype.numpy())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Optimised, products with dequantised weights would round the activations too.
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run([LOGITS], feeds)[0]
