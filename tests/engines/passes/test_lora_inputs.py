"""Each row of a step gets what its own adapter adds, next to any linear layer but the head."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engines.passes.lora_inputs import add_lora_inputs, lora_tables, without_adapter
from engines.passes.merged_projections import merge_projections
from serving.bundle import LoraModule, LoraTable
from tests.engines.passes.graphs import Arrays, operators, run
from tests.engines.passes.small_graphs import graph, random

IDS = np.array([2, 0, 1])
WIDTHS = {"q_proj": 32, "k_proj": 16, "v_proj": 24}


def attention(shape: str = "b, s, 8") -> ir.Model:
    """Three projections with biases of one source, and a head of 48 tokens."""
    lines = []
    weights = {"head.weight": random(8, 48, seed=9)}
    for seed, (name, width) in enumerate(WIDTHS.items()):
        weights[f"attn.{name}.weight"] = random(width, 8, seed=seed)
        weights[f"attn.{name}.bias"] = random(width, seed=seed + 10)
        lines.append(f"attn__{name}__t = Transpose <perm: ints = [1, 0]> (attn__{name}__weight)")
        lines.append(f"attn__{name}__product = MatMul (x, attn__{name}__t)")
        lines.append(f"{name} = Add (attn__{name}__product, attn__{name}__bias)")
    leading = shape.removesuffix(", 8")
    outputs = "".join(f", float[{leading}, {width}] {name}" for name, width in WIDTHS.items())
    return graph(
        f"agraph (int64[b, s] input_ids, float[{shape}] x) => (float[b, s, 48] logits{outputs}) {{"
        + "\n".join(lines)
        + "to_rows = Shape (input_ids) width = Constant <value_ints = [8]> ()"
        + "rows = Concat <axis = 0> (to_rows, width)"
        + "by_row = Reshape (x, rows) logits = MatMul (by_row, head__weight) }",
        weights,
    )


def inputs(*, is_flat: bool = False) -> Arrays:
    x = random(3, 2, 8, seed=20)
    return {"input_ids": np.zeros((3, 2), np.int64), "x": x.reshape(6, 8) if is_flat else x}


def tables(table: str, width: int, rank: int = 2, adapters: int = 3) -> Arrays:
    """Random tables; adapter 0 is none."""
    arrays = {
        f"lora.{table}.a": random(adapters, 8, rank, seed=30),
        f"lora.{table}.b": random(adapters, rank, width, seed=31),
    }
    for array in arrays.values():
        array[0] = 0
    return arrays


def added(given: Arrays, table: str) -> np.ndarray:
    x = given["x"].reshape(3, 2, 8)
    return np.stack(
        [
            x[row] @ given[f"lora.{table}.a"][index] @ given[f"lora.{table}.b"][index]
            for row, index in enumerate(IDS)
        ]
    )


@pytest.mark.parametrize("shape", ["b, s, 8", "t, 8"])
def test_merged_projections_have_one_table(shape: str) -> None:
    is_flat = shape == "t, 8"
    plain, model = attention(shape), attention(shape)
    merge_projections(model)
    before = operators(model)
    add_lora_inputs(model, ["q_proj", "v_proj"])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    extra = operators(model) - before
    reshaping = {"Shape": 1, "Concat": 1, "Reshape": 2} if is_flat else {}
    assert extra == {"Gather": 2, "MatMul": 2, "Add": 1} | reshaping

    name = "attn.q_proj_k_proj_v_proj"
    assert lora_tables(model) == (
        LoraTable(
            name=name,
            inputs=8,
            outputs=72,
            modules=(
                LoraModule(name="attn.q_proj", first_output=0, outputs=32),
                LoraModule(name="attn.v_proj", first_output=48, outputs=24),
            ),
        ),
    )
    assert lora_tables(model.clone()) == lora_tables(model)
    given = inputs(is_flat=is_flat)
    expected = run(plain, given)
    given |= tables(name, 72) | {"adapter_ids": IDS}
    got = run(model, given)
    parts = np.split(added(given, name), [32, 48], axis=-1)
    for projection, delta in zip(WIDTHS, parts, strict=True):
        wanted = expected[projection] + delta.reshape(expected[projection].shape)
        assert np.abs(delta).max() > 1
        np.testing.assert_allclose(got[projection], wanted, atol=1e-5)
    np.testing.assert_array_equal(got["logits"], expected["logits"])


@pytest.mark.parametrize("rank", [0, 1])
def test_without_an_adapter_the_numbers_stay(rank: int) -> None:
    """Rank 0 is what an engine binds where no row has one, rank 1 what calibration feeds."""
    model = attention()
    add_lora_inputs(model, ["k_proj"])
    given = inputs()
    expected = run(attention(), given)
    nothing: Arrays = {}
    for value in model.graph.inputs:
        array = without_adapter(value)
        if array is not None:
            nothing[value.name] = array
    assert nothing.keys() == {"adapter_ids", "lora.attn.k_proj.a", "lora.attn.k_proj.b"}
    nothing["adapter_ids"] = np.zeros(3, np.int64)
    nothing["lora.attn.k_proj.a"] = nothing["lora.attn.k_proj.a"][:, :, :rank]
    nothing["lora.attn.k_proj.b"] = nothing["lora.attn.k_proj.b"][:, :rank]
    got = run(model, given | nothing)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def head(model: ir.Model) -> str:
    del model
    return "head"


def of_another_type(model: ir.Model) -> str:
    """As a router in float32 of a model in float16."""
    weight = model.graph.initializers["head.weight"]
    array = weight.const_value.numpy().astype(ml_dtypes.bfloat16)
    weight.const_value, weight.type = ir.tensor(array), ir.TensorType(ir.DataType.BFLOAT16)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    return "q_proj"


def of_heads(model: ir.Model) -> str:
    model.graph.inputs[1].shape = ir.Shape(["b", 1, "s", 8])
    return "v_proj"


@pytest.mark.parametrize("change", [head, of_another_type, of_heads])
def test_other_layers_are_left_alone(change: Callable[[ir.Model], str]) -> None:
    model = attention()
    module = change(model)
    before = operators(model)
    add_lora_inputs(model, [module])
    assert operators(model) == before
    assert lora_tables(model) == ()
    assert len(model.graph.inputs) == 2


def test_a_name_is_whole() -> None:
    model = attention()
    add_lora_inputs(model, ["proj", "tn.q_proj"])
    assert lora_tables(model) == ()
    add_lora_inputs(model, ["attn.q_proj"])
    assert [table.name for table in lora_tables(model)] == ["attn.q_proj"]
