"""Small decoder graphs written by hand, as the exporter would write them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import DType

VOCAB, HEADS, KV_HEADS, DIM = 32, 4, 2, 16
WIDTH = HEADS * DIM
SCALE = 0.3
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True)
class Layer:
    """What one layer's attention asks for."""

    window: int | None = None
    softcap: float = 0.0


CAUSAL, WINDOW, CAPPED = Layer(), Layer(window=3), Layer(softcap=0.5)
CAPPED_WINDOW = Layer(window=3, softcap=0.5)


def decoder(*layers: Layer, dtype: DType = "float32") -> ir.Model:
    """Embedding, attention layers over their caches, unembedding of the positions asked for."""
    kind = TYPES[dtype]
    caches = [f"{i}.{part}" for i in range(len(layers)) for part in ("key", "value")]
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["sequence"], start=1, end=2),
        helper.make_node("Add", ["past_lengths", "sequence"], ["lengths"]),
        helper.make_node("Gather", ["embedding", "input_ids"], ["x0"]),
        *_window_mask(),
    ]
    for i, layer in enumerate(layers):
        nodes += _attention_layer(i, layer)
    nodes += [
        helper.make_node("Unsqueeze", ["logits_positions", "axis2"], ["column"]),
        helper.make_node("Expand", ["column", "row_shape"], ["index"]),
        helper.make_node("GatherElements", [f"x{len(layers)}", "index"], ["rows"], axis=1),
        helper.make_node("MatMul", ["rows", "head"], ["logits"], name="lm_head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            _value("input_ids", TensorProto.INT64, ["b", "s"]),
            _value("past_lengths", TensorProto.INT64, ["b"]),
            _value("logits_positions", TensorProto.INT64, ["b", "n"]),
            *(_value(f"past_key_values.{c}", kind, ["b", KV_HEADS, "c", DIM]) for c in caches),
        ],
        [
            _value("logits", kind, ["b", "n", VOCAB]),
            *(_value(f"present.{c}", kind, ["b", KV_HEADS, "c", DIM]) for c in caches),
        ],
        [*_weights(len(layers), kind), *_constants()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def _window_mask() -> list[onnx.NodeProto]:
    """Boolean [b, 1, s, c]: fewer than three tokens back."""
    return [
        helper.make_node("Squeeze", ["sequence"], ["sequence_scalar"]),
        helper.make_node("Range", ["zero", "sequence_scalar", "one"], ["new"]),
        helper.make_node("Shape", ["past_key_values.0.key"], ["capacity"], start=2, end=3),
        helper.make_node("Squeeze", ["capacity"], ["capacity_scalar"]),
        helper.make_node("Range", ["zero", "capacity_scalar", "one"], ["cached"]),
        helper.make_node("Unsqueeze", ["past_lengths", "axis1"], ["first"]),
        helper.make_node("Add", ["first", "new"], ["positions"]),
        helper.make_node("Unsqueeze", ["positions", "axes13"], ["last_seen"]),
        helper.make_node("Sub", ["last_seen", "three"], ["not_seen"]),
        helper.make_node("LessOrEqual", ["cached", "last_seen"], ["causal"]),
        helper.make_node("Greater", ["cached", "not_seen"], ["near"]),
        helper.make_node("And", ["causal", "near"], ["window_mask"]),
    ]


def _attention_layer(i: int, layer: Layer) -> list[onnx.NodeProto]:
    nodes = []
    for part, split in (("query", "q_split"), ("key", "kv_split"), ("value", "kv_split")):
        flat, name = f"{part}{i}_flat", f"{part}{i}"
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"{part}{i}_weight"], [flat]),
            helper.make_node("Reshape", [flat, split], [f"{name}_split"]),
            helper.make_node("Transpose", [f"{name}_split"], [name], perm=[0, 2, 1, 3]),
        ]
    for part in ("key", "value"):
        nodes.append(
            helper.make_node(
                "TensorScatter",
                [f"past_key_values.{i}.{part}", f"{part}{i}", "past_lengths"],
                [f"present.{i}.{part}"],
                name=f"layers.{i}/TensorScatter_{part}",
                axis=2,
            )
        )
    operands = [f"query{i}", f"present.{i}.key", f"present.{i}.value"]
    operands += ["", "", "", "lengths"] if layer.window is None else ["window_mask"]
    attributes: dict[str, float] = {"is_causal": 1} if layer.window is None else {}
    if layer.softcap:
        attributes["softcap"] = layer.softcap
    return [
        *nodes,
        helper.make_node(
            "Attention", operands, [f"seen{i}"], f"layers.{i}/Attention", scale=SCALE, **attributes
        ),
        helper.make_node("Transpose", [f"seen{i}"], [f"seen{i}_rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"seen{i}_rows", "join"], [f"seen{i}_flat"]),
        helper.make_node("Add", [f"x{i}", f"seen{i}_flat"], [f"x{i + 1}"]),
    ]


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _weights(layers: int, kind: int) -> list[onnx.TensorProto]:
    shapes = {"embedding": (VOCAB, WIDTH), "head": (WIDTH, VOCAB)}
    for i in range(layers):
        shapes |= {f"query{i}_weight": (WIDTH, WIDTH)}
        shapes |= {f"{part}{i}_weight": (WIDTH, KV_HEADS * DIM) for part in ("key", "value")}
    random = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return [
        numpy_helper.from_array((0.2 * random.standard_normal(shape)).astype(dtype), name)
        for name, shape in shapes.items()
    ]


def _constants() -> list[onnx.TensorProto]:
    constants: dict[str, int | list[int]] = {
        "zero": 0,
        "one": 1,
        "three": 3,
        "axis1": [1],
        "axis2": [2],
        "axes13": [1, 3],
        "row_shape": [1, 1, WIDTH],
        "q_split": [0, 0, HEADS, DIM],
        "kv_split": [0, 0, KV_HEADS, DIM],
        "join": [0, 0, WIDTH],
    }
    return [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()]


def run(model: ir.Model, capacity: int = 16) -> list[np.ndarray]:
    """Outputs by ONNX Runtime for two rows with pasts of different length."""
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    random = np.random.default_rng(1)
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key")]
    shape = (2, KV_HEADS, capacity, DIM)
    dtype = np.float16 if caches[0].type == "tensor(float16)" else np.float32
    outputs = session.run(
        None,
        {
            "input_ids": random.integers(0, VOCAB, (2, 5)),
            "past_lengths": np.array([7, 2]),
            "logits_positions": np.tile(np.arange(5), (2, 1)),
            **{value.name: random.standard_normal(shape).astype(dtype) for value in caches},
        },
    )
    return [np.asarray(output) for output in outputs]
