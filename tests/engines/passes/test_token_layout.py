"""Heads stay where projections write them: no Transpose is left around lowered attention."""

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.passes.group_query_attention import lower_to_group_query_attention
from engines.passes.insertion import Inserter
from engines.passes.token_layout import replace_heads_first, tokens_first
from tests.engines.passes.graphs import assert_close, feeds, operators, run
from tests.engines.tensorrt.decoder_graph import CAUSAL, DIM, HEADS, KV_HEADS, VOCAB, decoder

WIDTHS = {"query": HEADS * DIM, "key": KV_HEADS * DIM, "value": KV_HEADS * DIM}
COUNTS = {"query": HEADS, "key": KV_HEADS, "value": KV_HEADS}
FEATURES = sum(WIDTHS.values())


def merged(
    rotated: int | None = None, order: tuple[str, ...] = tuple(WIDTHS), *, normed: bool = False
) -> ir.Model:
    """A decoder of one layer with a merged projection, as the standard passes leave it.

    ``rotated`` channels of queries and keys get a rotary embedding, and before it a norm where they
    are ``normed``; ``order`` is how the projection is split.
    """
    random = np.random.default_rng(3)
    arrays = {
        "embedding": random.standard_normal((VOCAB, FEATURES)).astype(np.float32),
        "bias": random.standard_normal(FEATURES).astype(np.float32),
        "head": random.standard_normal((HEADS * DIM, VOCAB)).astype(np.float32),
        "scales": random.standard_normal(DIM).astype(np.float32),
        "sizes": np.array([WIDTHS[part] for part in order]),
        "join": np.array([0, 0, HEADS * DIM]),
        **{f"{part}_shape": np.array([0, 0, COUNTS[part], DIM]) for part in order},
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x"]),
        helper.make_node("Add", ["x", "bias"], ["merged"]),
        helper.make_node("Split", ["merged", "sizes"], [f"{part}_flat" for part in order], axis=-1),
        helper.make_node("Shape", ["input_ids"], ["sequence"], start=1, end=2),
        helper.make_node("Add", ["past_lengths", "sequence"], ["lengths"]),
    ]
    for part in order:
        heads = "heads" if rotated and part != "value" else "new"
        nodes += [
            helper.make_node("Reshape", [f"{part}_flat", f"{part}_shape"], [f"{part}_split"]),
            helper.make_node(
                "Transpose", [f"{part}_split"], [f"{part}_{heads}"], perm=[0, 2, 1, 3]
            ),
        ]
    if rotated:
        angles = np.arange(VOCAB)[:, None] * 0.3 ** np.arange(rotated // 2)
        arrays |= {
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
        }
        for table in ("cos", "sin"):
            nodes.append(helper.make_node("Gather", [table, "input_ids"], [f"{table}_rows"]))
        for part in ("query", "key"):
            source = f"{part}_heads"
            if normed:
                source = f"{part}_normed"
                nodes.append(
                    helper.make_node("RMSNormalization", [f"{part}_heads", "scales"], [source])
                )
            operands = [source, "cos_rows", "sin_rows"]
            partial = {} if rotated == DIM else {"rotary_embedding_dim": rotated}
            nodes.append(helper.make_node("RotaryEmbedding", operands, [f"{part}_new"], **partial))
    caches = []
    for part in ("key", "value"):
        past, present = f"past_key_values.0.{part}", f"present.0.{part}"
        nodes.append(
            helper.make_node(
                "TensorScatter", [past, f"{part}_new", "past_lengths"], [present], axis=2
            )
        )
        shape = ["b", KV_HEADS, "c", DIM]
        caches.append([helper.make_tensor_value_info(n, 1, shape) for n in (past, present)])
    operands = ["query_new", "present.0.key", "present.0.value", "", "", "", "lengths"]
    nodes += [
        helper.make_node("Attention", operands, ["seen"], is_causal=1),
        helper.make_node("Transpose", ["seen"], ["seen_rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen_rows", "join"], ["joined"]),
        helper.make_node("MatMul", ["joined", "head"], ["logits"]),
    ]
    integers = [
        ("input_ids", ["b", "s"]),
        ("past_lengths", ["b"]),
        ("logits_positions", ["b", "n"]),
    ]
    graph = helper.make_graph(
        nodes,
        "merged",
        [
            *(helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n, shape in integers),
            *(past for past, _ in caches),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", VOCAB]),
            *(present for _, present in caches),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def lowered(model: ir.Model) -> ir.Model:
    lower_to_group_query_attention(model)
    common.RemoveUnusedNodesPass()(model)
    return model


@pytest.mark.parametrize("rotated", [None, DIM, DIM // 2], ids=["none", "whole", "partial"])
@pytest.mark.parametrize(("past", "sequence"), [([0], 5), ([4, 9, 1], 1), ([6, 2], 4)])
def test_numbers_stay(rotated: int | None, past: list[int], sequence: int) -> None:
    inputs = feeds(merged(rotated), past=past, sequence=sequence)
    expected = run(merged(rotated), inputs, "logits")
    assert_close(run(lowered(merged(rotated)), inputs, "logits"), expected, 1e-4)


@pytest.mark.parametrize("rotated", [None, DIM, DIM // 2], ids=["none", "whole", "partial"])
def test_no_transpose_and_no_reshape_is_left(rotated: int | None) -> None:
    before, after = operators(merged(rotated)), operators(lowered(merged(rotated)))
    assert (before["Transpose"], before["Reshape"]) == (4, 4)
    assert (after["Transpose"], after["Reshape"]) == (0, 0)
    assert after["RotaryEmbedding"] == before["RotaryEmbedding"]


def test_a_norm_of_each_head_moves_with_the_heads() -> None:
    model = lowered(merged(DIM, normed=True))
    assert operators(model)["Transpose"] == 0
    inputs = feeds(model, past=[4, 9], sequence=1)
    expected = run(merged(DIM, normed=True), inputs, "logits")
    assert_close(run(model, inputs, "logits"), expected, 1e-4)


def test_a_merged_projection_is_read_as_it_is() -> None:
    model = lowered(merged())
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert operators(model)["Split"] == 0
    assert [value.name if value else None for value in attention.inputs[:3]] == [
        "merged",
        None,
        None,
    ]


def test_a_projection_merged_in_another_order_is_split() -> None:
    order = ("key", "query", "value")
    inputs = feeds(merged(order=order), past=[4, 9], sequence=1)
    expected = run(merged(order=order), inputs, "logits")
    model = lowered(merged(order=order))
    assert operators(model)["Split"] == 1
    assert_close(run(model, inputs, "logits"), expected, 1e-4)


def test_separate_projections_are_read_directly() -> None:
    model = lowered(decoder(CAUSAL))
    assert operators(model)["Transpose"] == operators(model)["Reshape"] == 0


def heads_elsewhere(shape: list[int]) -> ir.Model:
    """x [2, 6, 8] through a Reshape to ``shape`` and a Transpose, and both undone."""
    back = np.array([2, 6, 8])
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["split"]),
        helper.make_node("Transpose", ["split"], ["heads"], perm=[0, 2, 1, 3]),
        helper.make_node("Identity", ["heads"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "back"], ["joined"]),
        helper.make_node("Neg", ["joined"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6, 8])],
        [numpy_helper.from_array(np.array(shape), "shape"), numpy_helper.from_array(back, "back")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


@pytest.mark.parametrize("shape", [[2, 6, 4, 2], [6, 2, 4, 2], [2, 12, 2, 2]])
def test_rows_that_are_regrouped_too_keep_their_reshape(shape: list[int]) -> None:
    model = heads_elsewhere(shape)
    graph = model.graph
    identity = next(node for node in graph if node.op_type == "Identity")
    insert = Inserter(graph, identity, "moved")
    flat = tokens_first(insert, identity.inputs[0])
    assert (flat.name == "x") == (shape[:2] == [2, 6])
    flat = insert.value("Identity", [flat])
    seen = identity.outputs[0]
    seen.shape = ir.Shape([shape[0], shape[2], shape[1], shape[3]])
    replace_heads_first(insert, seen, flat)
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], -x)
