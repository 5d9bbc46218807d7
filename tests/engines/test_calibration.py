"""Calibration sees what transformers' own linear layers see."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engines.calibration import InputStatistics, collect, collect_in_parts, observe
from engines.linears import find_linears
from serving.contract import PARTS, past_name
from tests.conftest import Graphs

ARCHITECTURES = ["llama", "qwen2", "gpt2"]
WINDOWS = [np.random.default_rng(5).integers(3, 500, size) for size in (17, 9, 24)]


class Pair:
    """A checkpoint in transformers, and its graph."""

    def __init__(self, checkpoint: Path, graph: ir.Model) -> None:
        self.torch = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.graph = graph

    def linear_inputs(self) -> dict[str, np.ndarray]:
        """What goes into each linear layer over all windows, [tokens, in], by weight name."""
        seen: dict[str, list[np.ndarray]] = {}

        def remember(name: str) -> Callable[..., None]:
            def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                seen.setdefault(name, []).append(inputs[0].detach().flatten(0, -2).numpy())

            return hook

        hooks = [
            module.register_forward_pre_hook(remember(f"{name}.weight"))
            for name, module in self.torch.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        ]
        with torch.no_grad():
            for window in WINDOWS:
                self.torch(torch.from_numpy(window)[None])
        for hook in hooks:
            hook.remove()
        return {name: np.concatenate(arrays) for name, arrays in seen.items()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], traced_graph: Graphs
) -> Pair:
    return Pair(checkpoint(request.param), traced_graph(request.param))


def test_statistics_of_every_linear_layer(pair: Pair, tmp_path: Path) -> None:
    before = [node.name for node in pair.graph.graph]
    statistics = collect(pair.graph, WINDOWS, tmp_path, second_moments=True)
    assert statistics.keys() == {linear.name for linear in find_linears(pair.graph)}
    assert "lm_head.weight" in statistics
    inputs = pair.linear_inputs()
    for name, found in statistics.items():
        check(found, inputs[name])
    assert [node.name for node in pair.graph.graph] == before
    assert list(tmp_path.iterdir()) == []


def check(found: InputStatistics, inputs: np.ndarray) -> None:
    assert found.rows == len(inputs) == sum(map(len, WINDOWS))
    magnitude = np.abs(inputs)
    np.testing.assert_allclose(found.mean_magnitude, magnitude.mean(axis=0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.largest_magnitude, magnitude.max(axis=0), rtol=1e-3, atol=1e-5)
    assert found.second_moment is not None
    expected = np.einsum("ti,tj->ij", inputs, inputs)
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found.second_moment, expected, atol=tolerance)


def test_layers_with_one_source_share_their_statistics(pair: Pair, tmp_path: Path) -> None:
    statistics = collect(pair.graph, WINDOWS[:1], tmp_path)
    sources = {linear.name: linear.source for linear in find_linears(pair.graph)}
    assert len({id(found) for found in statistics.values()}) == len(set(sources.values()))
    assert all(found.second_moment is None for found in statistics.values())


def test_a_small_budget_takes_several_runs(pair: Pair, tmp_path: Path) -> None:
    whole = collect(pair.graph, WINDOWS, tmp_path, second_moments=True)
    parts = list(collect_in_parts(pair.graph, WINDOWS, tmp_path, budget=1))
    sources = {linear.source for linear in find_linears(pair.graph)}
    assert len(parts) == len(sources)
    merged = {name: found for part in parts for name, found in part.items()}
    assert list(merged) == list(whole)
    for name, found in merged.items():
        np.testing.assert_allclose(found.second_moment, whole[name].second_moment, rtol=1e-5)
    one = list(collect_in_parts(pair.graph, WINDOWS[:1], tmp_path))
    assert len(one) == 1


def test_cached_values_can_be_observed(pair: Pair, tmp_path: Path) -> None:
    """Also those that lowering fuses into one operator: the buffers' updates."""
    updates = [node for node in pair.graph.graph if node.op_type == "TensorScatter"]
    values = [update.inputs[1] for update in updates]
    (seen,) = observe(pair.graph, values, WINDOWS[:1], tmp_path)
    with torch.no_grad():
        cache = pair.torch(torch.from_numpy(WINDOWS[0])[None]).past_key_values
    for update, value in zip(updates, values, strict=True):
        assert isinstance(value, ir.Value)
        layer, part = next(
            (layer, part)
            for layer in range(len(cache.layers))
            for part in PARTS
            if past_name(layer, part) == update.inputs[0].name
        )
        held = cache.layers[layer]
        expected = held.keys if part == "key" else held.values
        np.testing.assert_allclose(seen[value.name], expected.numpy(), atol=1e-4)
