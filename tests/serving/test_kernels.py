"""The kernels' products against their definition, in float64, and against ONNX Runtime's own."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving import kernels
from serving.errors import UserError
from serving.onnxruntime import open_session

SPAN = 128  # activations that share a scale

INSTRUCTION_SETS = ("avx2", "best")

pytestmark = pytest.mark.skipif(
    kernels.instruction_set() is None, reason="the kernels weren't built, or not for this processor"
)


@dataclass
class Case:
    """A MatMulNBits node with random weights."""

    inputs: int
    outputs: int
    bits: int
    block: int
    asymmetric: bool = False
    bias: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.dtype = np.float16 if self.half else np.float32
        shape = (self.outputs, -(-self.inputs // self.block))
        largest = (1 << self.bits) - 1
        self.numbers = rng.integers(0, largest + 1, (*shape, self.block)).astype(np.uint8)
        self.scales = rng.uniform(0.01, 0.02, shape).astype(self.dtype)
        self.zeros = np.full(shape, (largest + 1) // 2, np.uint8)
        if self.asymmetric:
            self.zeros = rng.integers(0, largest + 1, shape).astype(np.uint8)
        self.offsets = rng.standard_normal(self.outputs).astype(self.dtype) * self.bias

    def weights(self) -> npt.NDArray[np.float64]:
        """The weights that the integers stand for, [inputs, outputs]."""
        real = (self.numbers.astype(np.float64) - self.zeros[..., None]) * self.scales[..., None]
        return real.reshape(self.outputs, -1)[:, : self.inputs].T

    def graph(self) -> bytes:
        names = ["x", "numbers", "scales", "zeros" if self.asymmetric else "", ""]
        names.append("offsets" if self.bias else "")
        constants = {"numbers": packed(self.numbers, self.bits), "scales": self.scales}
        if self.asymmetric:
            constants["zeros"] = packed(self.zeros, self.bits)
        if self.bias:
            constants["offsets"] = self.offsets
        node = helper.make_node(
            "MatMulNBits",
            names,
            ["y"],
            domain="com.microsoft",
            K=self.inputs,
            N=self.outputs,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=4,
        )
        kind = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        graph = helper.make_graph(
            [node],
            "product",
            [helper.make_tensor_value_info("x", kind, [1, "rows", self.inputs])],
            [helper.make_tensor_value_info("y", kind, [1, "rows", self.outputs])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def packed(array: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return array
    if array.shape[-1] % 2:
        array = np.concatenate([array, np.zeros_like(array[..., :1])], axis=-1)
    return array[..., 0::2] | array[..., 1::2] << 4


def rounded(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Rows with each SPAN of them rounded to 127 steps either way."""
    result = np.zeros(rows.shape)
    for start in range(0, rows.shape[-1], SPAN):
        span = rows[..., start : start + SPAN]
        largest = np.abs(span).max(axis=-1, keepdims=True).astype(np.float64)
        result[..., start : start + SPAN] = np.rint(span / largest * 127) * largest / 127
    return result


CASES = (
    Case(128, 16, 4, 128),
    Case(256, 70, 4, 32),
    Case(96, 50, 4, 32, asymmetric=True),
    Case(80, 33, 4, 16),
    Case(80, 33, 4, 16, asymmetric=True, bias=True),
    Case(192, 100, 4, 64, asymmetric=True, bias=True),
    Case(512, 64, 4, 256, asymmetric=True),
    Case(100, 5, 4, 256),
    Case(2304, 40, 4, 128, bias=True),
    Case(128, 16, 8, 128),
    Case(256, 70, 8, 32, bias=True),
    Case(200, 70, 8, 32, asymmetric=True),
    Case(80, 33, 8, 16),
    Case(2304, 40, 8, 256),
)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_are_those_of_the_rounded_activations(
    case: Case, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    session = open_session(case.graph(), "cpu", 2)
    for rows in (1, 2, 3, 4, 5, 7, 8, 12, 13, 27):
        x = np.random.default_rng(rows).standard_normal((1, rows, case.inputs)).astype(np.float32)
        x[0, 0] *= 1000  # rows have scales of their own
        expected = rounded(x) @ case.weights() + case.offsets
        size = np.abs(x).max(axis=-1, keepdims=True) * np.sqrt(case.inputs)
        got = session.run(None, {"x": x})[0]
        assert (np.abs(got - expected) / size).max() < 1e-5


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("rows", [1, 9])
def test_float16_goes_in_and_comes_out(
    rows: int, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    case = Case(192, 37, 4, 32, asymmetric=True, bias=True, half=True)
    x = np.random.default_rng(1).standard_normal((1, rows, case.inputs)).astype(np.float16)
    got = open_session(case.graph(), "cpu", 2).run(None, {"x": x})[0]
    expected = rounded(x.astype(np.float32)) @ case.weights() + case.offsets
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_s_kernel_gives_the_same(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(256, 48, bits, 128, bias=True)
    x = np.random.default_rng(2).standard_normal((1, 3, case.inputs)).astype(np.float32)
    ours = open_session(case.graph(), "cpu", 2).run(None, {"x": x})[0]
    monkeypatch.setenv(kernels.CHOICE, "none")
    assert kernels.library() is None
    theirs = open_session(case.graph(), "cpu", 2, prepack=True).run(None, {"x": x})[0]
    assert not np.array_equal(ours, theirs)  # one kernel can't have done both
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(64, 32), (50, 37), (7, 5), (768, 70), (1030, 33), (2100, 16)]
)
def test_float_products(
    inputs: int, outputs: int, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((outputs, inputs)).astype(np.float32)
    session = open_session(linear(weights), "cpu", 2, float32=True)
    for rows in (1, 2, 3, 4, 5, 7, 8, 12, 13, 25):
        x = rng.standard_normal((rows, 1, inputs)).astype(np.float32)
        got = session.run(None, {"x": x})[0]
        expected = x.astype(np.float64) @ weights.T.astype(np.float64)
        assert got.shape == expected.shape
        assert (np.abs(got - expected) / np.sqrt(inputs)).max() < 1e-5


def test_other_products_are_refused_not_done_wrong() -> None:
    weights = np.eye(4, dtype=np.float32)
    open_session(linear(weights, alpha=2.0), "cpu", 2)  # ONNX Runtime's own has them
    with pytest.raises(UserError, match="rows times constant weights"):
        open_session(linear(weights, alpha=2.0), "cpu", 2, float32=True)
    with pytest.raises(UserError, match="rows times constant weights"):
        open_session(linear(weights, transA=1), "cpu", 2, float32=True)


def linear(weights: npt.NDArray[np.float32], **attributes: float) -> bytes:
    """A FusedMatMul with weights [outputs, inputs]."""
    node = helper.make_node(
        "FusedMatMul", ["x", "weights"], ["y"], domain="com.microsoft", transB=1, **attributes
    )
    outputs, inputs = weights.shape
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1, outputs])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def test_zeros_and_no_rows() -> None:
    case = Case(128, 16, 4, 32, bias=True)
    session = open_session(case.graph(), "cpu", 2)
    zeros = np.zeros((1, 2, 128), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": zeros})[0][0], [case.offsets] * 2)
    assert session.run(None, {"x": zeros[:, :0]})[0].shape == (1, 0, 16)


def test_every_operator_of_the_library_is_onnxruntime_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that has them opens without the library."""
    monkeypatch.setenv(kernels.CHOICE, "none")
    assert kernels.instruction_set() is None
    open_session(Case(128, 16, 4, 32).graph(), "cpu", 2)
