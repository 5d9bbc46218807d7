"""Single layers of the interpreter against onnx's reference evaluator."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tests.engines.tensorrt.interpreter import interpret
from tests.engines.tensorrt.interpreter.attention import seen_keys
from tests.engines.tensorrt.interpreter.values import Array
from tests.engines.tensorrt.test_network import parsed

pytest.importorskip("tensorrt_rtx")
RANDOM = np.random.default_rng(0)
FLOATS = RANDOM.standard_normal((2, 3, 4, 8)).astype(np.float32)
ROWS = FLOATS[0, :, 0]  # [3, 8]
ANGLES = RANDOM.uniform(0, 3, (2, 4, 3)).astype(np.float32)
PLACES = np.array([[5, -2], [0, 7], [1, 1]])
SCALES = np.array([0.01, 0.02, 0.05], np.float32)
ZEROS = np.zeros(3, np.int8)
CODES = RANDOM.integers(-8, 8, (4, 6)).astype(np.int8)

# An operator, its inputs (constants by "@", which TensorRT wants for some), attributes, outputs.
NODES: dict[str, tuple[str, dict[str, Array], dict[str, Any], int]] = {
    "largest": ("TopK", {"x": ROWS, "@k": np.array([3])}, {"axis": 1}, 2),
    "scattered": (
        "ScatterElements",
        {"x": ROWS, "i": np.array([[5, 2], [0, 7], [1, 3]]), "u": ROWS[:, :2]},
        {"axis": 1},
        1,
    ),
    "gathered by element": ("GatherElements", {"x": ROWS, "@i": PLACES}, {"axis": 1}, 1),
    "gathered from the end": ("Gather", {"x": FLOATS, "@i": np.array([-1, 0])}, {"axis": 2}, 1),
    "gathered by several indices": ("GatherND", {"x": FLOATS, "@i": -PLACES[1:] % 2 - 2}, {}, 1),
    "summed up": ("CumSum", {"x": ROWS, "@axis": np.array(1)}, {}, 1),
    "sliced backwards": (
        "Slice",
        {"x": ROWS, "@from": np.array([6]), "@to": np.array([0]), "@a": [1], "@step": [-2]},
        {},
        1,
    ),
    "counted": (
        "Range",
        {"@from": np.array(3), "@to": np.array(12), "@step": np.array(2)},
        {},
        1,
    ),
    "repeated": ("Expand", {"x": ROWS[:, :1], "@shape": np.array([2, 3, 5])}, {}, 1),
    "tiled": ("Tile", {"x": ROWS, "@times": np.array([2, 3])}, {}, 1),
    "averaged": ("ReduceMean", {"x": FLOATS, "@axes": np.array([1, 3])}, {"keepdims": 0}, 1),
    "normalised": (
        "LayerNormalization",
        {"x": FLOATS, "@scale": ROWS[0], "@bias": ROWS[1]},
        {"epsilon": 0.1},
        1,
    ),
    "softmax": ("Softmax", {"x": FLOATS}, {"axis": 1}, 1),
    "clipped": ("Clip", {"x": ROWS, "@low": np.float32(-0.5), "@high": np.float32(0.3)}, {}, 1),
    "gelu": ("Gelu", {"x": ROWS}, {}, 1),
    "gelu with tanh": ("Gelu", {"x": ROWS}, {"approximate": "tanh"}, 1),
    "rotated": (
        "RotaryEmbedding",
        {"x": FLOATS, "cos": np.cos(ANGLES), "sin": np.sin(ANGLES)},
        {"rotary_embedding_dim": 6},
        1,
    ),
    "rotated neighbours": (
        "RotaryEmbedding",
        {"x": FLOATS, "cos": np.cos(ANGLES), "sin": np.sin(ANGLES)},
        {"rotary_embedding_dim": 6, "interleaved": 1},
        1,
    ),
    "quantised by row": (
        "QuantizeLinear",
        {"x": 2 * ROWS, "@s": SCALES, "@z": ZEROS},
        {"axis": 0},
        1,
    ),
    "dequantised by row": (
        "DequantizeLinear",
        {"@x": CODES[:3], "@s": SCALES},
        {"axis": 0},
        1,
    ),
    "dequantised by block": (
        "DequantizeLinear",
        {"@x": CODES, "@s": RANDOM.uniform(0.1, 1, (2, 6)).astype(np.float32)},
        {"axis": 0, "block_size": 2},
        1,
    ),
}


def model_of(
    operator: str, inputs: Mapping[str, Any], attributes: Mapping[str, Any], outputs: int
) -> onnx.ModelProto:
    names = [name.removeprefix("@") for name in inputs]
    results = [f"output{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, results, **attributes)],
        operator,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in inputs.items()
            if not name.startswith("@")
        ],
        [helper.make_value_info(name, onnx.TypeProto()) for name in results],
        [
            onnx.numpy_helper.from_array(np.asarray(array), name[1:])
            for name, array in inputs.items()
            if name.startswith("@")
        ],
    )
    opset = [helper.make_opsetid("", 24)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=11)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_a_layer(node: tuple[str, dict[str, Array], dict[str, Any], int]) -> None:
    model = model_of(*node)
    fed = {name: array for name, array in node[1].items() if not name.startswith("@")}
    expected = ReferenceEvaluator(model).run(None, fed)
    got = interpret(parsed(ir.from_proto(model)), fed)
    for ours, theirs in zip(got.values(), expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_which_keys_are_seen() -> None:
    """Two queries over buffers of five keys, of which rows have three and four."""
    lengths = np.array([3, 4])
    picture = {
        ("UPPER_LEFT", True): ["1.... 11...", "1.... 11..."],
        ("LOWER_RIGHT", True): ["11... 111..", "111.. 1111."],
        ("NONE", True): ["111.. 111..", "1111. 1111."],
        ("LOWER_RIGHT", False): ["1111. 11111"],
    }
    for (causal, limited), rows in picture.items():
        seen = seen_keys(causal, 2, 5, lengths if limited else None)
        drawn = [" ".join("".join(".1"[k] for k in query) for query in row[0]) for row in seen * 1]
        assert drawn == rows, causal
