"""What is beyond the longest source isn't read, and the numbers hold."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from engines.passes.trimmed_sources import trim_sources
from serving.contract import PARTS, cross_name

BATCH, HEADS, CAPACITY, DIM = 2, 2, 9, 4

# Scores over a buffer whose length the mask is built for, as decoders are traced.
GRAPH = f"""
<ir_version: 10, opset_import: ["" : 24]>
cross (float[{BATCH}, {HEADS}, 1, {DIM}] query, int64[{BATCH}] source_lengths,
       float[{BATCH}, {HEADS}, source, {DIM}] cross_key,
       float[{BATCH}, {HEADS}, source, {DIM}] cross_value)
  => (float[{BATCH}, {HEADS}, 1, {DIM}] output)
  <int64 zero = {{0}}, int64 one = {{1}}, int64[1] axis = {{1}}, int64[2] axes = {{1, 2}}>
{{
  length = Shape <start: int = 2, end: int = 3> (cross_key)
  count = Squeeze (length)
  positions = Range (zero, count, one)
  ends = Unsqueeze (source_lengths, axis)
  used = Less (positions, ends)
  mask = Unsqueeze (used, axes)
  output = Attention (query, cross_key, cross_value, mask)
}}
"""


def test_the_part_in_use_is_read() -> None:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH))
    for value, part in zip(model.graph.inputs[2:], PARTS, strict=True):
        value.name = cross_name(0, part)  # in which the parser of texts takes no dots
    before = ReferenceEvaluator(ir.to_proto(model))
    trim_sources(model)
    after = ReferenceEvaluator(ir.to_proto(model))
    random = np.random.default_rng(3)
    shape = (BATCH, HEADS, CAPACITY, DIM)
    feeds = {
        "query": random.standard_normal((BATCH, HEADS, 1, DIM)).astype(np.float32),
        "source_lengths": np.array([3, 5]),
        "cross_key_values.0.key": random.standard_normal(shape).astype(np.float32),
        "cross_key_values.0.value": random.standard_normal(shape).astype(np.float32),
    }
    [expected] = before.run(None, feeds)
    for name in ("cross_key_values.0.key", "cross_key_values.0.value"):
        feeds[name][:, :, 5:] = np.nan  # a weight of 0 times NaN is NaN
    [got] = after.run(None, feeds)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.isnan(before.run(None, feeds)[0]).any()


def test_a_decoder_without_a_source_stays_as_it_is() -> None:
    text = "g (int64[n] input_ids) => (int64[n] logits) { logits = Identity (input_ids) }"
    model = ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> {text}')
    )
    trim_sources(model)
    assert [node.op_type for node in model.graph] == ["Identity"]
