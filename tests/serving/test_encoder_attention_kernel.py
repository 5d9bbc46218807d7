"""The kernels of encoders' attention against its definition in float64."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from engines.passes.encoder_attention import fuse_encoder_attention
from serving import kernels
from serving.onnxruntime import open_session
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import graph

Mask = npt.NDArray[np.bool_]

pytestmark = pytest.mark.skipif(
    kernels.instruction_set() is None, reason="the kernels weren't built, or not for this processor"
)


@dataclass(frozen=True)
class Case:
    heads: int
    size: int
    kv_heads: int = 0
    """0 for as many as there are heads, all in one tensor with the queries."""

    def model(self) -> ir.Model:
        kv_heads = self.kv_heads or self.heads
        width, kv_width = self.heads * self.size, kv_heads * self.size
        if self.kv_heads:
            inputs = f"float[b, n, {width}] q, float[b, n, {kv_width}] k, float[b, n, {kv_width}] v"
            parts = ""
        else:
            inputs = f"float[b, n, {3 * width}] rows"
            parts = "q, k, v = Split <axis = -1, num_outputs = 3> (rows)"
        turned = "\n".join(
            f"{x}4 = Reshape ({x}, {shape}) {x}t = Transpose <perm = [0, 2, 1, 3]> ({x}4)"
            for x, shape in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))
        )
        model = graph(
            f"""
            agraph ({inputs}, bool[mask_b, 1, mask_n, n] mask) => (float[b, n, {width}] y)
            <int64[4] heads = {{0, 0, {self.heads}, {self.size}}},
             int64[4] kv_heads = {{0, 0, {kv_heads}, {self.size}}},
             int64[3] joined = {{0, 0, {width}}}> {{
                {parts}
                {turned}
                attended = Attention <scale = 0.3> (qt, kt, vt, mask)
                back = Transpose <perm = [0, 2, 1, 3]> (attended)
                y = Reshape (back, joined)
            }}
            """
        )
        fuse_encoder_attention(model)
        name = "EncoderAttention" if self.kv_heads else "PackedEncoderAttention"
        assert operators(model) == {name: 1}
        return model

    def opened(self) -> onnxruntime.InferenceSession:
        graph = ir.to_proto(self.model()).SerializeToString()
        return open_session(graph, "cpu", 2, float32=True)

    def feeds(self, batch: int, tokens: int, mask: Mask) -> dict[str, npt.NDArray[np.generic]]:
        rng = np.random.default_rng(tokens)

        def rows(heads: int) -> npt.NDArray[np.float32]:
            return rng.standard_normal((batch, tokens, heads * self.size)).astype(np.float32)

        if not self.kv_heads:
            return {"rows": rows(3 * self.heads), "mask": mask}
        return {
            "q": rows(self.heads),
            "k": rows(self.kv_heads),
            "v": rows(self.kv_heads),
            "mask": mask,
        }

    def expected(self, feeds: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
        parts = [feeds[name] for name in "qkv"] if self.kv_heads else np.split(feeds["rows"], 3, -1)
        q, k, v = (
            part.astype(np.float64).reshape(*part.shape[:2], -1, self.size).transpose(0, 2, 1, 3)
            for part in parts
        )
        k, v = (np.repeat(x, self.heads // x.shape[1], axis=1) for x in (k, v))
        scores = np.where(feeds["mask"], 0.3 * q @ k.swapaxes(2, 3), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = weights / weights.sum(axis=-1, keepdims=True) @ v
        return seen.transpose(0, 2, 1, 3).reshape(*parts[0].shape[:2], -1)


CASES = (Case(3, 32), Case(2, 64), Case(1, 20), Case(13, 8), Case(4, 40, 2), Case(2, 128, 1))


def masks(batch: int, tokens: int) -> dict[str, Mask]:
    """Nothing hidden, padding of each text, and windows of each query."""
    whole = np.ones((batch, 1, 1, tokens), bool)
    padded = np.random.default_rng(0).random((batch, 1, 1, tokens)) < 0.6
    padded[:, :, :, tokens // 2] = True
    place = np.arange(tokens)
    window = np.abs(place[:, None] - place[None]) < 3
    return {
        "whole": whole,
        "padded": padded,
        "window": window[None, None],
        "both": window[None, None] & padded | np.eye(tokens, dtype=bool),
    }


@pytest.mark.parametrize("instruction_set", ["avx2", "best"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: Case, instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.CHOICE, instruction_set)
    session = case.opened()
    for tokens in (1, 2, 13, 16, 33, 130):
        for mask in masks(2, tokens).values():
            feeds = case.feeds(2, tokens, mask)
            got, expected = session.run(None, feeds)[0], case.expected(feeds)
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() < 1e-5


def test_large_scores_dont_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(2, 32)
    feeds = case.feeds(1, 20, np.ones((1, 1, 1, 20), bool))
    feeds["rows"] *= np.float32(30)
    expected = case.expected(feeds)
    for instruction_set in ("avx2", "best"):
        monkeypatch.setenv(kernels.CHOICE, instruction_set)
        assert np.abs(case.opened().run(None, feeds)[0] - expected).max() < 1e-2


@pytest.mark.parametrize("case", [Case(3, 32), Case(4, 40, 2)], ids=str)
def test_the_functions_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = case.feeds(2, 13, masks(2, 13)["padded"])
    ours = case.opened().run(None, feeds)[0]
    monkeypatch.setenv(kernels.CHOICE, "none")
    assert kernels.library() is None
    theirs = case.opened().run(None, feeds)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_text_that_sees_nothing_harms_no_other() -> None:
    case, mask = Case(2, 32), np.ones((2, 1, 1, 5), bool)
    mask[1] = False
    feeds = case.feeds(2, 5, mask)
    got = case.opened().run(None, feeds)[0]
    with np.errstate(invalid="ignore"):
        assert np.abs(got[0] - case.expected(feeds)[0]).max() < 1e-5
    assert np.isfinite(got).all()
