"""The kernel of GroupQueryAttention against attention's definition in float64."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper

from serving import kernels
from serving.errors import UserError
from serving.onnxruntime import open_session

Floats = npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(
    kernels.instruction_set() is None, reason="the kernels weren't built, or not for this processor"
)


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    size: int
    pasts: tuple[int, ...]
    window: int = -1
    softcap: float = 0.0
    packed: bool = False
    capacity: int = 96

    def graph(self, **attributes: float) -> bytes:
        widths = [self.heads * self.size] + [self.kv_heads * self.size] * 2
        if self.packed:
            widths = [sum(widths)]
        rows = ["query", "", ""] if self.packed else ["query", "key", "value"]
        cache = ["batch", self.kv_heads, self.capacity, self.size]
        node = helper.make_node(
            "GroupQueryAttention",
            [*rows, "past_key", "past_value", "last", "total", *[""] * 9, "lengths"],
            ["y", "present_key", "present_value"],
            domain="com.microsoft",
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            local_window_size=self.window,
            softcap=self.softcap,
            **attributes,
        )
        names = [name for name in rows if name]
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width])
            for name, width in zip(names, widths, strict=True)
        ]
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, cache)
            for name in ("past_key", "past_value")
        ]
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.INT32, shape)
            for name, shape in (("last", ["batch"]), ("total", []), ("lengths", ["batch"]))
        ]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("y", "present_key", "present_value")
        ]
        graph = helper.make_graph([node], "attention", inputs, outputs)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()

    def feeds(self, tokens: int) -> dict[str, npt.NDArray[np.generic]]:
        rng = np.random.default_rng(tokens)
        batch = len(self.pasts)

        def numbers(*shape: int) -> Floats:
            return rng.standard_normal(shape).astype(np.float32) * 2

        query = numbers(batch, tokens, self.heads * self.size)
        key, value = (numbers(batch, tokens, self.kv_heads * self.size) for _ in range(2))
        cache = (batch, self.kv_heads, self.capacity, self.size)
        last = np.array(self.pasts, np.int32) + tokens - 1
        rows = {"query": query, "key": key, "value": value}
        if self.packed:
            rows = {"query": np.concatenate([query, key, value], axis=-1)}
        return {
            **rows,
            "past_key": numbers(*cache),
            "past_value": numbers(*cache),
            "last": last.astype(np.int32),
            "total": np.array(last.max() + 1, np.int32),
            "lengths": np.full(batch, tokens, np.int32),
        }

    def expected(self, feeds: dict[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.float64]]:
        rows = [feeds[name] for name in ("query", "key", "value") if name in feeds]
        if self.packed:
            ends = np.cumsum([self.heads * self.size, self.kv_heads * self.size])
            rows = np.split(rows[0], ends, axis=-1)
        query, key, value = (array.astype(np.float64) for array in rows)
        batch, tokens, _ = query.shape
        keys, values = (feeds[n].astype(np.float64) for n in ("past_key", "past_value"))
        result = np.zeros((batch, tokens, self.heads, self.size))
        for row, past in enumerate(self.pasts):
            for store, new in ((keys, key), (values, value)):
                split = new[row].reshape(tokens, self.kv_heads, self.size)
                store[row, :, past : past + tokens] = split.transpose(1, 0, 2)
            for token in range(tokens):
                end = past + token + 1
                start = max(0, end - self.window) if self.window >= 0 else 0
                for head in range(self.heads):
                    kv_head = head // (self.heads // self.kv_heads)
                    one = query[row, token].reshape(self.heads, self.size)[head]
                    scores = keys[row, kv_head, start:end] @ one / np.sqrt(self.size)
                    if self.softcap:
                        scores = self.softcap * np.tanh(scores / self.softcap)
                    weights = np.exp(scores - scores.max())
                    seen = values[row, kv_head, start:end]
                    result[row, token, head] = weights / weights.sum() @ seen
        return [result.reshape(batch, tokens, -1), keys, values]


CASES = (
    Case(4, 4, 64, (0,)),
    Case(4, 2, 64, (11, 0, 40)),
    Case(14, 2, 64, (30,), packed=True),
    Case(6, 2, 8, (5, 9)),
    Case(3, 1, 20, (0, 31), packed=True),
    Case(2, 1, 80, (17,), softcap=5.0),
    Case(2, 2, 64, (17,), softcap=0.05),
    Case(2, 2, 128, (3, 20), window=7),
    Case(2, 1, 256, (0,), window=1),
    Case(40, 1, 16, (40,)),
    Case(4, 2, 32, (1500, 3), capacity=1600),
    Case(4, 2, 32, (1500,), window=600, capacity=1600),
)


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: Case, instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    session = open_session(case.graph(), "cpu", 2, float32_cache=True)
    for tokens in (1, 2, 5, 33):
        feeds = case.feeds(tokens)
        for got, expected in zip(session.run(None, feeds), case.expected(feeds), strict=True):
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() < 3e-5


def test_the_cache_is_updated_in_place() -> None:
    case = Case(4, 2, 64, (11, 40))
    session = open_session(case.graph(), "cpu", 2, float32_cache=True)
    feeds = case.feeds(3)
    expected = case.expected(feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    for part in ("key", "value"):
        array = feeds[f"past_{part}"]
        place = ("cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_input(f"past_{part}", *place)
        binding.bind_output(f"present_{part}", *place)
    session.run_with_iobinding(binding)
    assert np.abs(binding.get_outputs()[0].numpy() - expected[0]).max() < 3e-5
    np.testing.assert_array_equal(feeds["past_key"], expected[1].astype(np.float32))
    np.testing.assert_array_equal(feeds["past_value"], expected[2].astype(np.float32))


def test_onnxruntime_s_kernel_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(4, 2, 64, (11, 40), window=20, softcap=10.0)
    feeds = case.feeds(6)
    ours = open_session(case.graph(), "cpu", 2, float32_cache=True).run(None, feeds)
    monkeypatch.setenv(kernels.CHOICE, "none")
    theirs = open_session(case.graph(), "cpu", 2, float32_cache=True).run(None, feeds)
    assert not np.array_equal(ours[0], theirs[0])  # one kernel can't have done both
    np.testing.assert_allclose(ours[0], theirs[0], atol=3e-5)


def test_what_it_has_not_is_refused() -> None:
    with pytest.raises(UserError, match="rotation"):
        open_session(Case(4, 2, 64, (0,)).graph(do_rotary=1), "cpu", 2, float32_cache=True)
