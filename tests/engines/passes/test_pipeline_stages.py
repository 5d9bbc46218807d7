"""A graph cut into stages: what each takes and gives, and that the chain computes the same."""

from itertools import combinations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from engines.onnxruntime import lower
from engines.passes.pipeline_stages import Stage, split_into_stages
from engines.stage_boundaries import balance, find_boundaries
from serving.contract import is_hidden
from tests.engines.tensorrt.decoder_graph import (
    CAUSAL,
    KV_HEADS,
    VOCAB,
    WIDTH,
    WINDOW,
    Layer,
    decoder,
)

CAPACITY = 16
Arrays = dict[str, np.ndarray]


def names(values: object) -> list[str]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def buffers(layers: range, prefix: str) -> list[str]:
    return [f"{prefix}.{i}.{part}" for i in layers for part in ("key", "value")]


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def sharing_decoder() -> ir.Model:
    """Layer 1 attends to the keys and values of layer 0."""
    model = decoder(CAUSAL, CAUSAL, CAUSAL)
    presents = {value.name: value for value in model.graph.outputs}
    attention = node(model, "layers.1/Attention")
    attention.replace_input_with(1, presents["present.0.key"])
    attention.replace_input_with(2, presents["present.0.value"])
    return model


def decoder_with_skip() -> ir.Model:
    """The embeddings are added once more behind the last layer."""
    model = decoder(CAUSAL, WINDOW, CAUSAL)
    values = {value.name: value for each in model.graph for value in each.outputs}
    last = values["x3"].producer()
    assert last is not None
    more = ir.node("Add", [last.inputs[0], values["x0"]], name="skip/Add")
    more.outputs[0].name = "skip"
    model.graph.insert_before(last, [more])
    last.replace_input_with(0, more.outputs[0])
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))


def run(model: ir.Model, given: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    wanted = {value.name: given[value.name] for value in session.get_inputs()}
    outputs = session.run(None, wanted)
    return dict(zip(names(session.get_outputs()), map(np.asarray, outputs), strict=True))


def inputs(layers: int) -> Arrays:
    """Two rows of five tokens with pasts of different length, over buffers full of numbers."""
    random = np.random.default_rng(1)
    return {
        "input_ids": random.integers(0, VOCAB, (2, 5)),
        "past_lengths": np.array([7, 2]),
        "logits_positions": np.tile(np.arange(5), (2, 1)),
    } | {
        name: random.standard_normal((2, KV_HEADS, CAPACITY, WIDTH // 4)).astype(np.float32)
        for name in buffers(range(layers), "past_key_values")
    }


def assert_chain_equals(model: ir.Model, stages: list[Stage]) -> None:
    layers = stages[-1].layers.stop
    expected = run(model, inputs(layers))
    given, got = inputs(layers), {}
    for stage in stages:
        onnx.checker.check_model(ir.to_proto(stage.model), full_check=True)
        outputs = run(stage.model, given)
        assert not outputs.keys() & given.keys()
        given |= outputs
        got |= {name: array for name, array in outputs.items() if not is_hidden(name)}
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("layers", [(CAUSAL,) * 4, (WINDOW, CAUSAL, WINDOW, WINDOW)])
def test_the_chain_computes_what_the_graph_does(layers: tuple[Layer, ...], count: int) -> None:
    model = decoder(*layers)
    stages = split_into_stages(model, count)
    assert len(stages) == count
    assert [layer for stage in stages for layer in stage.layers] == [0, 1, 2, 3]
    assert_chain_equals(model, stages)


def test_a_stage_takes_and_gives_its_own_layers_and_the_hidden_states() -> None:
    first, middle, last = (
        stage.model.graph for stage in split_into_stages(decoder(*[WINDOW] * 3), 3)
    )
    both = ["input_ids", "past_lengths"]
    assert names(first.inputs) == [*both, *buffers(range(1), "past_key_values")]
    assert names(first.outputs) == ["hidden_states.0.0", *buffers(range(1), "present")]
    assert names(middle.inputs) == [
        *both,
        "hidden_states.0.0",
        *buffers(range(1, 2), "past_key_values"),
    ]
    assert names(middle.outputs) == ["hidden_states.1.0", *buffers(range(1, 2), "present")]
    assert names(last.inputs) == [
        *both,
        "logits_positions",
        "hidden_states.1.0",
        *buffers(range(2, 3), "past_key_values"),
    ]
    assert names(last.outputs) == ["logits", *buffers(range(2, 3), "present")]
    for graph in (middle, last):
        assert "embedding" not in graph.initializers
        hidden = next(value for value in graph.inputs if is_hidden(value.name))
        assert str(hidden.shape) == f"[b,s,{WIDTH}]"
    assert "head" in last.initializers
    assert "head" not in middle.initializers


def test_cuts_are_where_only_the_residual_stream_crosses() -> None:
    boundaries = find_boundaries(decoder(CAUSAL, WINDOW, CAUSAL))
    assert [(b.layer, names(b.carried)) for b in boundaries] == [(0, ["x1"]), (1, ["x2"])]


def test_what_a_later_layer_needs_too_crosses_every_boundary_in_between() -> None:
    model = decoder_with_skip()
    assert [names(b.carried) for b in find_boundaries(model)] == [["x0", "x1"], ["x0", "x2"]]
    stages = split_into_stages(model, 3)
    middle = stages[1].model.graph
    assert names(middle.outputs)[:2] == ["hidden_states.1.0", "hidden_states.1.1"]
    assert "embedding" not in middle.initializers  # it hands on what it got
    assert_chain_equals(model, stages)


def test_only_rows_of_tokens_cross() -> None:
    model = decoder_with_skip()
    add = node(model, "skip/Add")
    swap = [ir.node("Transpose", [add.inputs[1]], {"perm": [1, 0, 2]})]
    swap.append(ir.node("Transpose", [swap[0].outputs[0]], {"perm": [1, 0, 2]}))
    gather = add.inputs[1].producer() if add.inputs[1] is not None else None
    assert gather is not None
    model.graph.insert_after(gather, swap[0])
    model.graph.insert_before(add, swap[1])
    add.replace_input_with(1, swap[1].outputs[0])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    assert find_boundaries(model) == []
    with pytest.raises(ValueError, match="1 stages at most"):
        split_into_stages(model, 2)


def test_stages_of_a_deep_graph_are_lowered_as_a_whole_one_is() -> None:
    model = decoder(*[WINDOW] * 8)  # the last layers' numbers exceed their stages' inputs
    stages = split_into_stages(model, 8)
    for stage in stages:
        lower(stage.model)
        assert "Slice" in {each.op_type for each in stage.model.graph}
    lower(model)
    assert_chain_equals(model, stages)


def test_layers_that_share_a_cache_stay_together() -> None:
    model = sharing_decoder()
    stages = split_into_stages(model, 2)
    assert [stage.layers for stage in stages] == [range(2), range(2, 3)]
    assert_chain_equals(model, stages)
    with pytest.raises(ValueError, match="2 stages at most, because its layers share more"):
        split_into_stages(model, 3)


def test_the_graph_that_is_split_stays_as_it_is() -> None:
    model = decoder(CAUSAL, WINDOW)
    before = ir.to_proto(model).SerializeToString()
    split_into_stages(model, 2)
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_are_counted_where_they_go() -> None:
    model = decoder(*[CAUSAL] * 3)
    embedding = model.graph.initializers["embedding"]
    transposed = ir.node("Transpose", [embedding], {"perm": [1, 0]}, name="lm_head/Transpose")
    head = node(model, "lm_head/MatMul")
    model.graph.insert_before(head, [transposed])
    head.replace_input_with(1, transposed.outputs[0])  # tied: the first and the last stage read it
    for stage in split_into_stages(model, 3):
        weights = stage.model.graph.initializers
        assert ("embedding" in weights) == (1 not in stage.layers)
        stored = sum(value.const_value.nbytes for value in weights.values() if value.const_value)
        assert stage.weight_bytes == stored


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_stage_is_as_small_as_can_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    tied, shared = ir.Value(name="tied"), ir.Value(name="shared")
    parts = [{ir.Value(name=str(i)): int(random.integers(1, 50)) ** 2} for i in range(8)]
    parts[0][tied] = parts[-1][tied] = 1000
    parts[3][shared] = parts[4][shared] = 1500

    def largest(ranges: list[range]) -> int:
        return max(sum({k: v for i in r for k, v in parts[i].items()}.values()) for r in ranges)

    for stages in (1, 2, 3, 5, 8):
        chosen = balance(parts, stages)
        assert [i for r in chosen for i in r] == list(range(8))
        assert len(chosen) == stages
        every = (
            largest([range(a, b) for a, b in zip((0, *cuts), (*cuts, 8), strict=True)])
            for cuts in combinations(range(1, 8), stages - 1)
        )
        assert largest(chosen) == min(every)


def test_no_stage_is_made_larger_to_even_out_the_others() -> None:
    parts = [{ir.Value(name=str(i)): size} for i, size in enumerate((4, 5, 5, 5, 9, 6))]
    assert balance(parts, 3) == [range(3), range(3, 5), range(5, 6)]  # 14, 14, 6; not 9, 10, 15
