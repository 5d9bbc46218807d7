"""A scale moves from activations into weights, and the logits stay."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from engines.linears import Linear, find_linears
from engines.quantization.qdq import quantize_initializer
from engines.quantization.smoothing import can_fold, fold_input_scale, has_own_weight
from engines.quantization.weights import WeightScheme, round_to_nearest
from tests.engines.passes.graphs import operators
from tests.engines.quantization.decoders import logits


def by_source(model: ir.Model) -> Iterator[list[Linear]]:
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in find_linears(model):
        groups.setdefault(linear.source, []).append(linear)
    yield from groups.values()


def scale_for(linear: Linear) -> np.ndarray:
    random = np.random.default_rng(linear.inputs)
    return np.exp(random.uniform(-1.5, 1.5, linear.inputs)).astype(np.float32)


APART = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
MERGED = {"q_proj_k_proj_v_proj", "gate_proj_up_proj", "down_proj"}
# What folds into something in front of it; the rest needs a Mul.
FOLDED = {
    ("llama", False): APART,
    ("llama", True): MERGED,
    ("qwen3", True): MERGED,
    ("gemma2", True): MERGED,
    ("gpt2", True): {"c_attn", "c_fc"},
    ("phi", False): {"q_proj", "k_proj", "v_proj", "fc1"},
}


@pytest.mark.parametrize(("architecture", "merged"), FOLDED)
def test_logits_stay(architecture: str, merged: bool, decoder: Callable[..., ir.Model]) -> None:
    model = decoder(architecture, merged=merged)
    expected, before = logits(model), operators(model)
    folded, inserted = set(), 0
    for linears in list(by_source(model)):
        if not all(map(has_own_weight, linears)):
            continue
        can = can_fold(linears)
        old = [linear.array().copy() for linear in linears]
        scale = scale_for(linears[0])
        assert fold_input_scale(model, linears, scale) == can
        for linear, array in zip(linears, old, strict=True):
            np.testing.assert_allclose(linear.array(), array * scale, rtol=1e-6)
        folded |= {linear.name.split(".")[-2] for linear in linears if can}
        inserted += not can
    assert folded - {"lm_head"} == FOLDED[architecture, merged]
    assert inserted
    after = operators(model)
    assert after.pop("Mul", 0) == before.pop("Mul", 0) + inserted
    assert after == before
    np.testing.assert_allclose(logits(model), expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("merged", [False, True])
def test_a_quantised_producer_takes_the_scale_into_its_scales(
    merged: bool,
    decoder: Callable[..., ir.Model],
) -> None:
    model = decoder("llama", merged=merged)
    up = next(linear for linear in find_linears(model) if "up_proj" in linear.name)
    for scheme in (WeightScheme(4, 32), WeightScheme(8)):
        copy = model.clone()
        weight = copy.graph.initializers[up.name]
        quantized = round_to_nearest(up.array(), scheme)
        quantize_initializer(copy, weight, quantized, transposed=up.transposed)
        expected = logits(copy)
        down = next(linear for linear in find_linears(copy) if "down_proj" in linear.name)
        integers = copy.graph.initializers[f"{up.name}.integers"].const_value.numpy().copy()
        assert fold_input_scale(copy, [down], scale_for(down))
        got = copy.graph.initializers[f"{up.name}.integers"].const_value.numpy()
        np.testing.assert_array_equal(got, integers)
        np.testing.assert_allclose(logits(copy), expected, atol=2e-4 * np.abs(expected).max())


def test_other_readers_of_the_source_keep_their_activations(
    decoder: Callable[..., ir.Model],
) -> None:
    model = decoder("llama", merged=False)
    expected = logits(model)
    q_proj = next(linear for linear in find_linears(model) if "q_proj" in linear.name)
    assert not can_fold([q_proj])
    assert not fold_input_scale(model, [q_proj], scale_for(q_proj))
    np.testing.assert_allclose(logits(model), expected, atol=2e-4 * np.abs(expected).max())


def test_a_tied_weight_is_refused(decoder: Callable[..., ir.Model]) -> None:
    model = decoder("gpt2")
    head = list(find_linears(model))[-1]
    assert not has_own_weight(head)
    with pytest.raises(ValueError, match=r"lm_head\.weight is shared"):
        fold_input_scale(model, [head], scale_for(head))
