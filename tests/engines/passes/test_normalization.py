"""RMS and layer normalisation become one node each."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.normalization import fuse_normalization
from tests.engines.passes.graphs import operators, run
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

X = {"x": 3 * random(2, 3, 8, seed=1)}
SCALE_FIRST = "y = Mul (norm__weight, norm__normalized)"
SCALE_LAST = "y = Mul (norm__normalized, norm__weight)"


def root_mean_square(
    product: str = SCALE_FIRST,
    *,
    axis: int = -1,
    scale: np.ndarray | None = None,
    centred: bool = False,
) -> ir.Model:
    """As transformers' norm layers are traced in float32."""
    source = "norm__centred" if centred else "x"
    centring = """
        norm__mean = ReduceMean <keepdims: int = 1> (x, axes)
        norm__centred = Sub (x, norm__mean)
    """
    text = f"""
    agraph (float[b, s, 8] x) => (float[b, s, 8] y)
    <float two = {{2.0}}, float epsilon = {{0.125}}, int64[1] axes = {{{axis}}}> {{
        {centring if centred else ""}
        norm__square = Pow ({source}, two)
        norm__mean_square = ReduceMean <keepdims: int = 1> (norm__square, axes)
        norm__positive = Add (norm__mean_square, epsilon)
        norm__root = Sqrt (norm__positive)
        norm__factor = Reciprocal (norm__root)
        norm__normalized = Mul ({source}, norm__factor)
        {product}
    }}
    """
    return graph(text, {"norm.weight": random(8) if scale is None else scale})


@pytest.mark.parametrize("product", [SCALE_FIRST, SCALE_LAST])
@pytest.mark.parametrize("centred", [False, True])
def test_becomes_one_node(product: str, centred: bool) -> None:
    after = assert_same_numbers(
        lambda: root_mean_square(product, centred=centred), fuse_normalization, X
    )
    (node,) = after.graph
    assert node.op_type == ("LayerNormalization" if centred else "RMSNormalization")
    assert node.attributes.get_float("epsilon") == 0.125
    assert node.outputs[0] is after.graph.outputs[0]
    assert not node.metadata_props


def test_names_are_those_of_the_module() -> None:
    def make() -> ir.Model:
        model = root_mean_square()
        model.graph.append(ir.node("Neg", [model.graph.outputs[0]], name="last/Neg"))
        last = next(reversed(model.graph)).outputs[0]
        last.name, last.type, last.shape = "z", model.graph.outputs[0].type, ir.Shape(["b", "s", 8])
        model.graph.outputs[0].name = "norm/Mul"
        model.graph.outputs[0] = last
        return model

    after = assert_same_numbers(make, fuse_normalization, X)
    assert [(n.name, n.outputs[0].name) for n in after.graph] == [
        ("norm/RMSNormalization", "norm/RMSNormalization"),
        ("last/Neg", "z"),
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: root_mean_square(axis=1),
        lambda: root_mean_square(scale=random(3, 8)),  # another scale for each token
        lambda: root_mean_square(scale=random(1)),
        lambda: root_mean_square("y = Mul (norm__normalized, norm__normalized)"),
    ],
    ids=["other axis", "matrix of scales", "one scale", "no scale"],
)
def test_other_formulas_are_left_alone(make: Callable[[], ir.Model]) -> None:
    assert_untouched(make, fuse_normalization)


def rounded(kind: str) -> ir.Model:
    """As in half precision: normalised in float32, rounded, then scaled."""
    number = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}[kind].value
    text = f"""
    agraph (float[b, s, 8] x32) => (float[b, s, 8] y32)
    <float two = {{2.0}}, float epsilon = {{0.125}}, int64[1] axes = {{-1}}> {{
        x = Cast <to: int = {number}> (x32)
        norm__weight = Cast <to: int = {number}> (weight32)
        norm__wide = Cast <to: int = 1> (x)
        norm__square = Pow (norm__wide, two)
        norm__mean_square = ReduceMean <keepdims: int = 1> (norm__square, axes)
        norm__positive = Add (norm__mean_square, epsilon)
        norm__root = Sqrt (norm__positive)
        norm__factor = Reciprocal (norm__root)
        norm__exact = Mul (norm__wide, norm__factor)
        norm__normalized = Cast <to: int = {number}> (norm__exact)
        norm__result = Mul (norm__weight, norm__normalized)
        y32 = Cast <to: int = 1> (norm__result)
    }}
    """
    return graph(text, {"weight32": random(8)})


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision(kind: str) -> None:
    after = rounded(kind)
    fuse_normalization(after)
    assert operators(after) == {"Cast": 3, "RMSNormalization": 1}
    if kind == "float16":  # ONNX Runtime has no bfloat16 kernel
        dtype = np.dtype(kind)
        x, weight = X["x"].astype(dtype).astype(np.float32), random(8).astype(dtype)
        exact = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(0.125))
        expected = (weight * exact.astype(dtype)).astype(np.float32)
        got = run(after, {"x32": X["x"]})["y32"]
        unit = 2.0 ** (np.floor(np.log2(np.abs(expected))) - 10)
        assert (np.abs(got - expected) <= unit).all()
