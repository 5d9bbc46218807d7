"""Linear layers with one source become one product and a Split; weights are joined when read."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from engines.linears import find_linears
from engines.passes.merged_projections import merge_projections
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

X = {"x": random(2, 3, 8, seed=9)}
WIDTHS = {"q_proj": 32, "k_proj": 16, "v_proj": 16}


def attention(
    *, biases: tuple[str, ...] = (), transposed: bool = True, width: int = 16, more: str = ""
) -> ir.Model:
    """Queries, keys and values of one source, and a layer of another module."""
    widths = WIDTHS | {"v_proj": width}
    lines, weights = [], {"mlp.up_proj.weight": random(8, 16)}
    for seed, (name, size) in enumerate(widths.items()):
        own = f"attn__{name}"
        weights[f"attn.{name}.weight"] = random(
            *((size, 8) if transposed else (8, size)), seed=seed
        )
        operand = f"{own}__weight"
        if transposed:
            lines.append(f"{own}__t = Transpose <perm: ints = [1, 0]> ({operand})")
            operand = f"{own}__t"
        result = f"{name}_result"
        if name in biases:
            weights[f"attn.{name}.bias"] = random(size, seed=seed + 10)
            lines.append(f"{own}__product = MatMul (x, {operand})")
            lines.append(f"{result} = Add ({own}__product, {own}__bias)")
        else:
            lines.append(f"{result} = MatMul (x, {operand})")
    lines.append("up = MatMul (x, mlp__up_proj__weight)")
    outputs = ", ".join(f"float[b, s, {size}] {name}_result" for name, size in widths.items())
    return graph(
        f"agraph (float[b, s, 8] x) => ({outputs}, float[b, s, 16] up) {{"
        + "\n".join([*lines, more])
        + "}",
        weights,
    )


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("biases", [(), tuple(WIDTHS)])
def test_becomes_one_product(transposed: bool, biases: tuple[str, ...]) -> None:
    after = assert_same_numbers(
        lambda: attention(transposed=transposed, biases=biases), merge_projections, X
    )
    counts = operators(after)
    assert (counts["MatMul"], counts["Split"]) == (2, 1)  # one is the other module's
    assert (counts["Transpose"], counts["Add"]) == (int(transposed), int(bool(biases)))
    merged = next(linear for linear in find_linears(after) if linear.name.startswith("attn"))
    assert merged.name == "attn.q_proj_k_proj_v_proj.weight"
    assert merged.transposed == transposed
    expected = np.concatenate([random(size, 8, seed=i) for i, size in enumerate(WIDTHS.values())])
    if transposed:
        np.testing.assert_array_equal(merged.array(), expected)
    assert not [name for name in after.graph.initializers if name.startswith("attn.q_proj.")]


def test_two_with_a_bias_and_one_without() -> None:
    """Such as Whisper's keys: what is alike is merged."""
    after = assert_same_numbers(
        lambda: attention(biases=("q_proj", "v_proj")), merge_projections, X
    )
    assert {linear.name for linear in find_linears(after)} == {
        "attn.q_proj_v_proj.weight",
        "attn.k_proj.weight",
        "mlp.up_proj.weight",
    }


def test_weights_used_elsewhere_and_narrow_ones_stay() -> None:
    def make() -> ir.Model:
        model = attention(width=8)  # as a router
        weight = model.graph.initializers["attn.k_proj.weight"]  # as a tied one
        tied = ir.node("Identity", [weight], name="tied")
        tied.outputs[0].name, tied.outputs[0].type = "tied", weight.type
        tied.outputs[0].shape = weight.shape
        model.graph.append(tied)
        model.graph.outputs.append(tied.outputs[0])
        return model

    assert_untouched(make, merge_projections)


def test_weights_are_joined_when_they_are_read() -> None:
    model = attention()
    reads = []
    for name in ("q_proj", "k_proj", "v_proj"):
        value = model.graph.initializers[f"attn.{name}.weight"]
        array = value.const_value.numpy().astype(ml_dtypes.bfloat16)

        def read(array: np.ndarray = array, name: str = name) -> ir.TensorProtocol:
            reads.append(name)
            return ir.tensor(array)

        value.const_value = ir.LazyTensor(
            read, dtype=ir.DataType.BFLOAT16, shape=ir.Shape(array.shape), name=value.name
        )
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    merge_projections(model)
    assert reads == []
    merged = model.graph.initializers["attn.q_proj_k_proj_v_proj.weight"].const_value
    assert merged is not None
    for _ in range(2):  # and kept nowhere
        reads.clear()
        assert merged.numpy().dtype == ml_dtypes.bfloat16
        assert reads == ["q_proj", "k_proj", "v_proj"]
