"""Which weights become zero: compared with PyTorch's pruning, and with plain loops."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.prune import l1_unstructured

from engines.pruning.plan import Pruning
from engines.pruning.pruning import masks, prune
from engines.pruning.sparsity import largest, two_largest_of_four
from tests.checkpoints import VOCABULARY
from tests.conftest import Graphs
from tests.engines.pruning.decoders import load, logits, put, reference


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.999])
def test_l1_as_pytorch(fraction: float) -> None:
    linear = torch.nn.Linear(40, 24)
    weight = linear.weight.detach().numpy().copy()
    l1_unstructured(linear, "weight", fraction)
    np.testing.assert_array_equal(largest(weight, fraction), linear.weight_mask.numpy() == 1)


def test_equal_magnitudes() -> None:
    """The count is kept where many weights are equal, and zeros go before anything else."""
    weight = np.array([[1, -1, 1, 0, 1, 0, -1, 1]], np.float32)
    kept = largest(weight, 0.5)
    assert kept.sum() == 4
    assert not kept[weight == 0].any()


def test_two_of_four() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    kept = two_largest_of_four(weight)
    for row, mask in zip(weight, kept, strict=True):
        for start in range(0, 16, 4):
            four = np.abs(row[start : start + 4])
            assert set(np.flatnonzero(mask[start : start + 4])) == set(np.argsort(four)[2:])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_unstructured(
    architecture: str, simplified: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    """Every linear layer of transformers but the last, pruned by PyTorch, gives the same logits."""
    model, graph = load(checkpoint(architecture)), simplified(architecture)
    zeros = 0
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head":
            l1_unstructured(module, "weight", 0.3)
            zeros += int((module.weight == 0).sum())
    report = prune(graph, Pruning(weights=0.3))
    assert report.zeros == zeros
    assert report.sparsity == zeros / report.parameters_after
    np.testing.assert_allclose(logits(graph, VOCABULARY), reference(model), atol=2e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_of_four_along_the_inputs(architecture: str, simplified: Graphs) -> None:
    graph = simplified(architecture)
    names = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc"}
    prune(graph, Pruning(two_of_four=True))
    weight = graph.graph.initializers[f"{names[architecture]}.weight"].const_value.numpy()
    by_inputs = weight if architecture == "llama" else weight.T
    assert ((by_inputs.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "lm_head.weight"}[architecture]
    assert graph.graph.initializers[embedding].const_value.numpy().all()


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
@pytest.mark.parametrize(
    "pruning",
    [
        Pruning(weights=0.5, heads=0.5, channels=0.25),
        Pruning(two_of_four=True, layers=1, channels=0.25),
    ],
    ids=["weights", "two of four"],
)
def test_masked_parameters_prune_losslessly(
    pruning: Pruning, architecture: str, simplified: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    """A model trained under the masks keeps its logits when it is pruned in the same way."""
    model, graph = load(checkpoint(architecture)), simplified(architecture)
    kept = masks(graph, pruning)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in kept:
                parameter += 0.05 * torch.randn(parameter.shape, generator=random)
                parameter.mul_(torch.from_numpy(kept[name]))
    put(graph, model.state_dict())
    prune(graph, pruning)
    np.testing.assert_allclose(logits(graph, VOCABULARY), reference(model), atol=2e-5)
