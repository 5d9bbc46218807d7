"""The kernels of linear layers against their definition in float64."""

from math import erf, sqrt

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from engines.passes.block_quantized_weights import lower_block_quantized_weights
from engines.passes.fused_linears import fuse_linears
from serving import kernels
from serving.errors import UserError
from serving.onnxruntime import open_session
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import graph, random

SPAN = 128  # activations that share a scale
ENDS = {"": "", "Gelu": "y = Gelu (sum)", "Add": "y = Add (sum, residual)"}
SIZES = [(64, 32), (50, 37), (7, 5), (384, 70), (1030, 33)]
INTEGER_SIZES = [(128, 32), (192, 37), (200, 5), (1536, 70)]

pytestmark = pytest.mark.skipif(
    kernels.instruction_set() is None, reason="the kernels weren't built, or not for this processor"
)


def layer(end: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> ir.Model:
    outputs, inputs = weight.shape
    model = graph(
        f"""
        agraph (float[batch, rows, {inputs}] x, float[batch, rows, {outputs}] residual)
            => (float[batch, rows, {outputs}] y) {{
            turned = Transpose <perm = [1, 0]> (weight)
            product = MatMul (x, turned)
            {"sum" if end else "y"} = Add (product, bias)
            {ENDS[end]}
        }}
        """,
        {"weight": weight, "bias": bias},
    )
    fuse_linears(model)
    assert operators(model) == {"Linear" + end: 1}
    return model


def integer_layer(
    end: str,
    integers: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
) -> ir.Model:
    outputs, inputs = integers.shape
    model = graph(
        f"""
        agraph (float[batch, rows, {inputs}] x, float[batch, rows, {outputs}] residual)
            => (float[batch, rows, {outputs}] y) {{
            weight = DequantizeLinear <axis = 1, block_size = 128> (integers, scales)
            turned = Transpose <perm = [1, 0]> (weight)
            product = MatMul (x, turned)
            {"sum" if end else "y"} = Add (product, bias)
            {ENDS[end]}
        }}
        """,
        {"integers": integers, "scales": scales, "bias": bias},
    )
    lower_block_quantized_weights(model)
    fuse_linears(model)
    assert operators(model) == {"IntegerLinear" + end: 1}
    return model


def opened(model: ir.Model) -> onnxruntime.InferenceSession:
    graph = ir.to_proto(model).SerializeToString()
    return open_session(graph, "cpu", 2, prepack=True, float32=True)


def finished(
    end: str, sums: npt.NDArray[np.float64], residual: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    if end == "Gelu":
        return sums * (1 + np.vectorize(erf)(sums / sqrt(2))) / 2
    return sums + residual if end == "Add" else sums


def rounded(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Rows with each SPAN of them rounded to 127 steps either way."""
    result = np.zeros(rows.shape)
    for start in range(0, rows.shape[-1], SPAN):
        span = rows[..., start : start + SPAN].astype(np.float64)
        largest = np.abs(span).max(axis=-1, keepdims=True)
        result[..., start : start + SPAN] = np.rint(span / largest * 127) * largest / 127
    return result


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("end", ENDS)
def test_float_layers(
    end: str, inputs: int, outputs: int, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    weight, bias = random(outputs, inputs), random(outputs, seed=1)
    session = opened(layer(end, weight, bias))
    for rows in (1, 2, 3, 5, 8, 11, 13, 25, 97, 801):
        x, residual = random(1, rows, inputs, seed=2), random(1, rows, outputs, seed=3)
        got = session.run(None, {"x": x, "residual": residual})[0]
        sums = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
        expected = finished(end, sums, residual)
        assert got.shape == expected.shape
        assert (np.abs(got - expected) / np.sqrt(inputs)).max() < 1e-5


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
@pytest.mark.parametrize(("inputs", "outputs"), INTEGER_SIZES)
@pytest.mark.parametrize("end", ENDS)
def test_integer_layers(
    end: str, inputs: int, outputs: int, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    rng = np.random.default_rng(0)
    integers = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (outputs, -(-inputs // 128))).astype(np.float32)
    bias = random(outputs, seed=1)
    weight = integers * np.repeat(scales.astype(np.float64), 128, axis=1)[:, :inputs]
    session = opened(integer_layer(end, integers, scales, bias))
    for rows in (1, 2, 3, 5, 8, 13, 25, 801):
        x, residual = random(1, rows, inputs, seed=2), random(1, rows, outputs, seed=3)
        x[0, 0] *= 100  # rows have scales of their own
        got = session.run(None, {"x": x, "residual": residual})[0]
        expected = finished(end, rounded(x) @ weight.T + bias, residual)
        size = np.abs(x).max(axis=-1, keepdims=True) * np.sqrt(inputs)
        assert (np.abs(got - expected) / size).max() < 1e-5


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
def test_gelu_at_extremes(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    numbers = np.array([0, -0.0, 1e-30, -1e-4, 5.2, -5.2, 9, -9, 1e6, -1e6], np.float32)
    session = opened(layer("Gelu", np.eye(1, dtype=np.float32), np.zeros(1, np.float32)))
    x = np.concatenate([numbers, np.linspace(-6, 6, 1001, dtype=np.float32)])[None, :, None]
    got = session.run(None, {"x": x, "residual": x})[0]
    expected = finished("Gelu", x.astype(np.float64), x)
    assert (np.abs(got - expected) / np.maximum(np.abs(x), 1)).max() < 3e-7
    nan = np.full((1, 1, 1), np.nan, np.float32)
    assert np.isnan(session.run(None, {"x": nan, "residual": nan})[0]).all()


@pytest.mark.parametrize("is_integer", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_the_functions_give_the_same(
    end: str, is_integer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_integer:
        integers = np.arange(128 * 48, dtype=np.int64).reshape(48, 128) * 7 % 255 - 127
        scales = np.full((48, 1), 0.01, np.float32)
        model = integer_layer(end, integers.astype(np.int8), scales, random(48, seed=1))
    else:
        model = layer(end, random(48, 128), random(48, seed=1))
    feeds = {"x": random(2, 9, 128, seed=2), "residual": random(2, 9, 48, seed=3)}
    ours = opened(model).run(None, feeds)[0]
    monkeypatch.setenv(kernels.CHOICE, "none")
    assert kernels.library() is None
    theirs = opened(model).run(None, feeds)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_rows() -> None:
    session = opened(layer("", random(5, 8), random(5)))
    empty = np.zeros((1, 0, 8), np.float32)
    got = session.run(None, {"x": empty, "residual": np.zeros((1, 0, 5), np.float32)})[0]
    assert got.shape == (1, 0, 5)


def test_weights_that_arent_constant_are_refused() -> None:
    model = layer("", random(5, 8), random(5))
    weight = model.graph.initializers.pop("weight")
    model.graph.inputs.append(weight)
    with pytest.raises(UserError, match="must be constant"):
        opened(model)
