"""A decoder graph of one layer, written by hand: the contract and nothing else."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import DType, GraphInfo, LayerInfo

VOCAB, HEADS, DIM = 32, 2, 4
WIDTH = HEADS * DIM
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def graph_info(dtype: DType = "float32") -> GraphInfo:
    return GraphInfo(
        contract_version=1,
        vocab_size=VOCAB,
        dtype=dtype,
        layers=(LayerInfo(kv_heads=HEADS, key_dim=DIM, value_dim=DIM),),
        max_length=4096,
    )


def make_graph(dtype: DType = "float32") -> onnx.ModelProto:
    """Embedding, causal attention over the cache, unembedding; float32 but for cache and logits."""
    weights = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(weights.standard_normal(shape).astype(np.float32), name)
        for name, shape in {
            "embedding": (VOCAB, WIDTH),
            "q_weight": (WIDTH, WIDTH),
            "k_weight": (WIDTH, WIDTH),
            "v_weight": (WIDTH, WIDTH),
            "head": (WIDTH, VOCAB),
        }.items()
    ]
    initializers += [
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in {
            "zero": 0,
            "one": 1,
            "sequence_axis": [1],
            "mask_axes": [1, 3],
            "last_axis": [-1],
            "split": [0, 0, HEADS, DIM],
            "join": [0, 0, WIDTH],
        }.items()
    ]

    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x"]),
        # Position p of the cache is seen by a token at position p or later.
        helper.make_node("Shape", ["input_ids"], ["sequence"], start=1),
        helper.make_node("Squeeze", ["sequence"], ["sequence_scalar"]),
        helper.make_node("Range", ["zero", "sequence_scalar", "one"], ["new"]),
        helper.make_node("Unsqueeze", ["past_lengths", "sequence_axis"], ["past_column"]),
        helper.make_node("Add", ["past_column", "new"], ["positions"]),
        helper.make_node("Unsqueeze", ["positions", "mask_axes"], ["positions_4d"]),
        helper.make_node("Shape", ["past_key_values.0.key"], ["capacity"], start=2, end=3),
        helper.make_node("Squeeze", ["capacity"], ["capacity_scalar"]),
        helper.make_node("Range", ["zero", "capacity_scalar", "one"], ["cached"]),
        helper.make_node("LessOrEqual", ["cached", "positions_4d"], ["mask"]),
    ]
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", f"{name}_weight"], [f"{name}_flat"]),
            helper.make_node("Reshape", [f"{name}_flat", "split"], [f"{name}_split"]),
            helper.make_node("Transpose", [f"{name}_split"], [f"{name}"], perm=[0, 2, 1, 3]),
        ]
    for name, part in {"k": "key", "v": "value"}.items():
        past, present = f"past_key_values.0.{part}", f"present.0.{part}"
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_typed"], to=TYPES[dtype]),
            helper.make_node(
                "TensorScatter", [past, f"{name}_typed", "past_lengths"], [present], axis=2
            ),
            helper.make_node("Cast", [present], [f"{name}_all"], to=TensorProto.FLOAT),
        ]
    nodes += [
        helper.make_node("Attention", ["q", "k_all", "v_all", "mask"], ["attended"]),
        helper.make_node("Transpose", ["attended"], ["attended_t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["attended_t", "join"], ["joined"]),
        helper.make_node("Add", ["x", "joined"], ["y"]),
        helper.make_node("Unsqueeze", ["logits_positions", "last_axis"], ["wanted"]),
        helper.make_node("GatherND", ["y", "wanted"], ["picked"], batch_dims=1),
        helper.make_node("MatMul", ["picked", "head"], ["logits_float"]),
        helper.make_node("Cast", ["logits_float"], ["logits"], to=TYPES[dtype]),
    ]
    cache_shape = ["batch", HEADS, "max_sequence", DIM]

    def cache(prefix: str) -> list[onnx.ValueInfoProto]:
        names = (f"{prefix}.0.key", f"{prefix}.0.value")
        return [helper.make_tensor_value_info(n, TYPES[dtype], cache_shape) for n in names]

    integer = TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info("input_ids", integer, ["batch", "sequence"]),
        helper.make_tensor_value_info("past_lengths", integer, ["batch"]),
        helper.make_tensor_value_info("logits_positions", integer, ["batch", "n"]),
        *cache("past_key_values"),
    ]
    logits = helper.make_tensor_value_info("logits", TYPES[dtype], ["batch", "n", VOCAB])
    graph = helper.make_graph(nodes, "tiny", inputs, [logits, *cache("present")], initializers)
    opset = helper.make_opsetid("", 24)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=11)
    onnx.checker.check_model(model)
    return model


def save_graph(path: Path, dtype: DType = "float32") -> Path:
    onnx.save(make_graph(dtype), path)
    return path
