"""The kernels of activation functions against their definition in float64."""

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper

from serving import kernels
from serving.onnxruntime import open_session

Floats = npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(
    kernels.instruction_set() is None, reason="the kernels weren't built, or not for this processor"
)

EXTREMES = np.array([0, -0.0, 1e-30, -1e-4, 8, -8, 40, -40, 300, -300, 1e6, -1e6], np.float32)


def fast_gelu(has_bias: bool) -> bytes:
    inputs = ["x", "bias"] if has_bias else ["x"]
    graph = helper.make_graph(
        [helper.make_node("FastGelu", inputs, ["y"], domain="com.microsoft")],
        "activation",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def gelu(x: Floats) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    angle = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    return wide / (1 + np.exp(np.minimum(-2 * angle, 700)))


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
@pytest.mark.parametrize("width", [1, 7, 16, 37])
@pytest.mark.parametrize("has_bias", [False, True])
def test_fast_gelu(
    instruction_set: str, width: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    rng = np.random.default_rng(width)
    x = rng.standard_normal((2, 5, width)).astype(np.float32) * 3
    bias = rng.standard_normal(width).astype(np.float32)
    feeds = {"x": x, "bias": bias} if has_bias else {"x": x}
    got = open_session(fast_gelu(has_bias), "cpu", 2, float32=True).run(None, feeds)[0]
    expected = gelu(x + bias if has_bias else x)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
def test_extremes(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    session = open_session(fast_gelu(False), "cpu", 1, float32=True)
    with np.errstate(over="ignore"):
        expected = gelu(EXTREMES)
    got = session.run(None, {"x": EXTREMES[None]})[0][0]
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-30)
    assert np.isnan(session.run(None, {"x": np.full((1, 3), np.nan, np.float32)})[0]).all()


def test_onnxruntime_s_kernel_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    ours = open_session(fast_gelu(False), "cpu", 2, float32=True).run(None, {"x": x})[0]
    monkeypatch.setenv(kernels.CHOICE, "none")
    theirs = open_session(fast_gelu(False), "cpu", 2, float32=True).run(None, {"x": x})[0]
    assert not np.array_equal(ours, theirs)  # one kernel can't have done both
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
