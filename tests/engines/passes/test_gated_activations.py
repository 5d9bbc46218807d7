"""Gated activation functions become one operator, which is a function of the graph."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from engines.passes.gated_activations import fuse_gated_activations
from serving import kernels
from serving.onnxruntime import open_session
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

SILU = "mlp__part = Sigmoid (mlp__gate) mlp__act = Mul (mlp__gate, mlp__part)"
GELU = 'mlp__act = Gelu <approximate = "tanh"> (mlp__gate)'
EXACT_GELU = "mlp__act = Gelu (mlp__gate)"
LAST = "y = Mul (mlp__act, mlp__up)"


def gated(
    activation: str,
    *,
    last: str = LAST,
    sizes: str = "11, 11",
    more: str = "",
    dtype: str = "float",
) -> ir.Model:
    return graph(
        f"""
        agraph ({dtype}[rows, 3, 22] x) => ({dtype}[rows, 3, 11] y)
        <int64[2] sizes = {{{sizes}}}> {{
            mlp__gate, mlp__up = Split <axis = -1> (x, sizes)
            {activation}
            {more}
            {last}
        }}
        """
    )


X = {"x": 4 * random(2, 3, 22)}


@pytest.mark.parametrize(("activation", "operator"), [(SILU, "SwiGlu"), (GELU, "GeGlu")])
def test_becomes_one_operator(activation: str, operator: str) -> None:
    last = "mlp__y = Mul (mlp__act, mlp__up) y = Neg (mlp__y)"
    after = assert_same_numbers(lambda: gated(activation, last=last), fuse_gated_activations, X)
    assert operators(after) == {operator: 1, "Neg": 1}
    assert [function.name for function in after.functions.values()] == [operator]


def test_factors_may_be_the_other_way_round() -> None:
    swapped = SILU.replace("mlp__gate, mlp__part", "mlp__part, mlp__gate")
    model = gated(swapped, last="y = Mul (mlp__up, mlp__act)")
    fuse_gated_activations(model)
    assert operators(model) == {"SwiGlu": 1}


def test_split_may_be_in_two_without_sizes() -> None:
    def make() -> ir.Model:
        return graph(
            f"""
            agraph (float[n, 22] x) => (float[n, 11] y) {{
                mlp__gate, mlp__up = Split <axis = -1, num_outputs = 2> (x)
                {SILU}
                {LAST}
            }}
            """
        )

    after = assert_same_numbers(make, fuse_gated_activations, {"x": random(4, 22)})
    assert operators(after) == {"SwiGlu": 1}


@pytest.mark.parametrize(
    "model",
    [
        lambda: gated(EXACT_GELU),
        lambda: gated(SILU, dtype="float16"),
        lambda: gated(SILU.replace("Sigmoid (mlp__gate)", "Sigmoid (mlp__up)")),
        lambda: gated(SILU, more="mlp__other = Mul (mlp__part, mlp__part)"),
        lambda: gated(SILU, last="y = Mul (mlp__act, mlp__act)"),
        lambda: gated(SILU, last="y = Add (mlp__act, mlp__up)"),
    ],
)
def test_other_formulas_are_left_alone(model: object) -> None:
    assert callable(model)
    assert_untouched(model, fuse_gated_activations)


def test_unequal_parts_are_left_alone() -> None:
    def make() -> ir.Model:
        return graph(
            f"""
            agraph (float[n, 12] x) => (float[n, 11] y) <int64[2] sizes = {{11, 1}}> {{
                mlp__gate, mlp__up = Split <axis = -1> (x, sizes)
                {SILU}
                {LAST}
            }}
            """
        )

    assert_untouched(make, fuse_gated_activations)


def in_float64(activation: str) -> np.ndarray:
    gate, up = np.split(X["x"].astype(np.float64), 2, axis=-1)
    cubed = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    silu, gelu = gate / (1 + np.exp(-gate)), gate / (1 + np.exp(-2 * cubed))
    return (silu if activation == SILU else gelu) * up


@pytest.mark.skipif(kernels.instruction_set() is None, reason="the kernels don't run here")
@pytest.mark.parametrize("activation", [SILU, GELU])
def test_the_kernel_runs_in_place_of_the_body(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gated(activation)
    fuse_gated_activations(model)
    proto = ir.to_proto(model).SerializeToString()
    body = onnxruntime.InferenceSession(proto).run(None, X)[0]
    for instruction_set in ("avx2", "best"):
        monkeypatch.setenv(kernels.CHOICE, instruction_set)
        ours = open_session(proto, "cpu", 2).run(None, X)[0]
        assert not np.array_equal(ours, body)  # one kernel can't have done both
        np.testing.assert_allclose(ours, in_float64(activation), rtol=1e-5)
