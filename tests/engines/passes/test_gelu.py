"""GELU's approximation becomes one node, whichever way it is written."""

import onnx_ir as ir
import pytest

from engines.passes.gelu import fuse_gelu
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

# transformers' NewGELUActivation, and BloomGelu.
SUM = """
    act__cube = Pow (x, three)
    act__part = Mul (act__cube, cubic)
    act__sum = Add (x, act__part)
    act__angle = Mul (act__sum, slope)
"""
PRODUCT = """
    act__steep = Mul (x, slope)
    act__part = Mul (x, cubic)
    act__square = Mul (act__part, x)
    act__factor = Add (act__square, one)
    act__angle = Mul (act__steep, act__factor)
"""


def gelu(angle: str, slope: float = 0.7978845834732056) -> ir.Model:
    return graph(
        f"""
        agraph (float[n] x) => (float[n] y)
        <float half = {{0.5}}, float one = {{1.0}}, float three = {{3.0}},
         float cubic = {{0.044714998453855515}}, float slope = {{{slope}}}> {{
            act__half = Mul (x, half)
            {angle}
            act__tanh = Tanh (act__angle)
            act__gate = Add (act__tanh, one)
            y = Mul (act__half, act__gate)
        }}
        """
    )


@pytest.mark.parametrize("angle", [SUM, PRODUCT])
def test_becomes_one_node(angle: str) -> None:
    after = assert_same_numbers(lambda: gelu(angle), fuse_gelu, {"x": 3 * random(100)})
    assert operators(after) == {"Gelu": 1}


def test_constants_may_be_those_of_half_precision() -> None:
    model = gelu(SUM, slope=0.796875)  # sqrt(2 / pi) in bfloat16
    fuse_gelu(model)
    assert operators(model) == {"Gelu": 1}


@pytest.mark.parametrize("angle", [SUM, PRODUCT])
def test_other_slopes_are_left_alone(angle: str) -> None:
    assert_untouched(lambda: gelu(angle, slope=0.81), fuse_gelu)
