"""Gemm becomes a MatMul that find_linears sees, on the tokens as they are."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.linears import find_linears
from engines.passes.linear_from_gemm import spell_out_gemm
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

X = {"x": random(2, 3, 8, seed=1)}


def flattened(attributes: str = "", source: str = "[b, s, 8]", stored: str = "in_out") -> ir.Model:
    """As GPT-2's Conv1D: flatten, Gemm, unflatten."""
    weight = random(8, 6) if stored == "in_out" else random(6, 8)
    model = graph(
        f"""
        agraph (float{source} x) => (float[b, s, 6] y)
        <int64[2] flat = {{-1, 8}}, int64[3] full = {{0, 0, 6}}> {{
            fc__flat = Reshape (x, flat)
            fc__product = Gemm {attributes} (fc__flat, fc__weight, fc__bias)
            fc__b = Shape <start: int = 0, end: int = 2> (x)
            fc__out = Constant <value_ints: ints = [6]> ()
            fc__shape = Concat <axis: int = 0> (fc__b, fc__out)
            fc__result = Reshape (fc__product, fc__shape)
            y = Neg (fc__result)
        }}
        """,
        {"fc.weight": weight, "fc.bias": random(6, seed=2)},
    )
    for node in model.graph:
        if node.outputs[0].name == "fc.result":
            node.outputs[0].shape = model.graph.outputs[0].shape
    return model


@pytest.mark.parametrize(
    ("attributes", "stored"), [("", "in_out"), ("<transB: int = 1>", "out_in")]
)
def test_becomes_a_linear_layer(attributes: str, stored: str) -> None:
    def make() -> ir.Model:
        return flattened(attributes, stored=stored)

    after = assert_same_numbers(make, spell_out_gemm, X)
    (linear,) = find_linears(after)
    assert linear.name == "fc.weight"
    assert linear.transposed == (stored == "out_in")
    assert linear.source is after.graph.inputs[0]  # no reshape in between
    assert linear.weight.const_value is not None
    weight = make().graph.initializers["fc.weight"].const_value
    assert weight is not None
    np.testing.assert_array_equal(linear.weight.const_value.numpy(), weight.numpy())
    assert operators(after)["Gemm"] == 0
    assert all((node.name or "").startswith("fc/") for node in after.graph if node.op_type != "Neg")


def test_heads_are_joined_without_flattening_the_tokens() -> None:
    """[b, s, 2, 4] to [b, s, 6]: the projection behind attention."""
    after = assert_same_numbers(
        lambda: flattened(source="[b, s, 2, 4]"), spell_out_gemm, {"x": random(2, 3, 2, 4)}
    )
    (linear,) = find_linears(after)
    joined = linear.source.producer()
    assert joined is not None
    assert joined.op_type == "Reshape"
    assert joined.inputs[1] is not None
    assert joined.inputs[1].const_value is not None
    assert joined.inputs[1].const_value.numpy().tolist() == [0, 0, 8]


def test_matrices_stay_matrices() -> None:
    """As a router's, whose result is no longer tokens in rows."""

    def make() -> ir.Model:
        return graph(
            "agraph (float[n, 8] x) => (float[n, 4] y) { y = Gemm <transB: int = 1> (x, w) }",
            {"w": random(4, 8)},
        )

    after = assert_same_numbers(make, spell_out_gemm, {"x": random(5, 8)})
    assert operators(after) == {"Transpose": 1, "MatMul": 1}


@pytest.mark.parametrize("attributes", ["<alpha: float = 0.5>", "<beta: float = 2.0>"])
def test_scaled_products_are_left_alone(attributes: str) -> None:
    assert_untouched(lambda: flattened(attributes), spell_out_gemm)


def test_products_of_two_activations_are_left_alone() -> None:
    text = "agraph (float[n, 8] x, float[8, 4] w) => (float[n, 4] y) { y = Gemm (x, w) }"
    assert_untouched(lambda: graph(text), spell_out_gemm)
