"""Removing a structure gives what transformers gives with its output weights at zero."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from engines.passes.merged_projections import merge_projections
from engines.pruning.axes import Cut
from engines.pruning.plan import Pruning
from engines.pruning.pruning import prune
from engines.pruning.removal import remove
from engines.pruning.slicing import Slicing
from exporter.structure import check_graph
from serving.errors import UserError
from tests.checkpoints import VOCABULARY
from tests.conftest import Graphs
from tests.engines.pruning.decoders import load, logits, put, reference

# What the last linear layer of attention and of the MLP is called, and whether it is [in, out].
OUTPUTS = {
    "llama": ("self_attn.o_proj", "mlp.down_proj", False),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj", False),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj", False),
    "phi": ("self_attn.dense", "mlp.fc2", False),
    "phi3": ("self_attn.o_proj", "mlp.down_proj", False),
    "gpt2": ("attn.c_proj", "mlp.c_proj", True),
    "falcon_alibi": ("self_attention.dense", "mlp.dense_4h_to_h", False),
}
HEADS, HEAD = 4, 16
CHANNELS_LEFT = 96  # of 128


def zero_inputs(model: PreTrainedModel, layer: int, linear: str, inputs: list[int]) -> None:
    """Zero the weights with which a linear layer reads these inputs."""
    architecture = model.config.model_type
    is_in_out = architecture == "gpt2"
    weight = layers(model)[layer].get_submodule(linear).weight
    weight.data[inputs if is_in_out else (slice(None), inputs)] = 0


def layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def features(heads: list[int]) -> list[int]:
    return [head * HEAD + i for head in heads for i in range(HEAD)]


def assert_same(pruned: np.ndarray, model: PreTrainedModel) -> None:
    np.testing.assert_allclose(pruned, reference(model), atol=2e-5)


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_heads(architecture: str, simplified: Graphs, checkpoint: Callable[[str], Path]) -> None:
    model, graph = load(checkpoint(architecture)), simplified(architecture)
    for layer, group in enumerate([1, 0]):
        zero_inputs(model, layer, OUTPUTS[architecture][0], features([2 * group, 2 * group + 1]))
    put(graph, model.state_dict())
    report = prune(graph, Pruning(heads=0.5))
    groups = getattr(model.config, "num_key_value_heads", HEADS)
    assert report.query_heads == (2, 2)
    assert report.kv_heads == (groups // 2,) * 2
    assert [value.shape[1] for value in graph.graph.inputs[3:]] == [groups // 2] * 4
    assert [value.shape[1] for value in graph.graph.outputs[1:]] == [groups // 2] * 4
    assert_same(logits(graph, VOCABULARY), model)


def test_query_heads_of_every_group(simplified: Graphs, checkpoint: Callable[[str], Path]) -> None:
    """One KV group can't go: it loses query heads."""
    model, graph = load(checkpoint("llama")), simplified("llama")
    for layer in (0, 1):
        zero_inputs(model, layer, "self_attn.o_proj", features([2, 3]))
    put(graph, model.state_dict())
    prune(graph, Pruning(heads=0.5))
    # One group of two query heads is left; half of them makes one head of that group.
    for layer, head in ((0, 0), (1, 1)):
        zero_inputs(model, layer, "self_attn.o_proj", features([head]))
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        weight = model.state_dict()[name][:, : 2 * HEAD]
        put(graph, {name: weight})
    report = prune(graph, Pruning(heads=0.5))
    assert (report.query_heads, report.kv_heads) == ((1, 1), (1, 1))
    assert_same(logits(graph, VOCABULARY), model)


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_channels(architecture: str, simplified: Graphs, checkpoint: Callable[[str], Path]) -> None:
    model, graph = load(checkpoint(architecture)), simplified(architecture)
    random = np.random.default_rng(0)
    down = OUTPUTS[architecture][1]
    shape = layers(model)[0].get_submodule(down).weight.shape
    channels = shape[0] if OUTPUTS[architecture][2] else shape[1]
    for layer in (0, 1):
        gone = random.choice(channels, channels // 4, replace=False).tolist()
        zero_inputs(model, layer, down, gone)
    put(graph, model.state_dict())
    before = logits(graph, VOCABULARY)
    report = prune(graph, Pruning(channels=0.25))
    assert set(report.channels.values()) == {channels * 3 // 4}
    assert report.parameters_after < report.parameters_before
    after = logits(graph, VOCABULARY)
    np.testing.assert_allclose(after, before, atol=2e-5)
    assert_same(after, model)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("architecture", OUTPUTS)
def test_layers(
    architecture: str, layer: int, simplified: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    model, graph = load(checkpoint(architecture)), simplified(architecture)
    for linear in OUTPUTS[architecture][:2]:
        for parameter in layers(model)[layer].get_submodule(linear).parameters():
            parameter.data.zero_()
    put(graph, model.state_dict())
    report = prune(graph, Pruning(layers=1))
    assert report.removed_layers == (layer,)
    check_graph(graph, 1, shared=False)
    assert len(graph.graph.inputs) == 5
    assert not [n for n in graph.graph.initializers if f".{layer}." in n]
    assert_same(logits(graph, VOCABULARY), model)


def test_all_at_once(simplified: Graphs, checkpoint: Callable[[str], Path]) -> None:
    model, graph = load(checkpoint("qwen2")), simplified("qwen2")
    for linear in OUTPUTS["qwen2"][:2]:
        layers(model)[0].get_submodule(linear).weight.data.zero_()
    zero_inputs(model, 1, "self_attn.o_proj", features([0, 1]))
    zero_inputs(model, 1, "mlp.down_proj", list(range(0, 128, 4)))
    put(graph, model.state_dict())
    report = prune(graph, Pruning(layers=1, heads=0.5, channels=0.25))
    assert report.removed_layers == (0,)
    assert_same(logits(graph, VOCABULARY), model)


@pytest.mark.parametrize(
    ("architecture", "pruning", "reason"),
    [
        ("olmo2", Pruning(heads=0.5), "norm"),  # normalised over all heads together
        ("mixtral", Pruning(channels=0.25), "experts"),
        ("llama", Pruning(heads=0.1), "none of 4 heads"),
        ("llama", Pruning(channels=0.01), "none of 128 channels"),
        ("llama", Pruning(layers=2), "all 2 layers"),
    ],
)
def test_refusals(architecture: str, pruning: Pruning, reason: str, simplified: Graphs) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        prune(simplified(architecture), pruning)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    ("wish", "option"),
    [
        ({"weights": 0.0}, "--prune"),
        ({"weights": 1.0}, "--prune"),
        ({"heads": 1.5}, "--prune-heads"),
        ({"channels": float("nan")}, "--prune-channels"),
        ({"layers": -1}, "--prune-layers"),
        ({"weights": 0.5, "two_of_four": True}, "--prune-2-4"),
    ],
)
def test_impossible_wishes(wish: dict[str, float], option: str) -> None:
    with pytest.raises(UserError, match=option):
        Pruning(**wish)


def test_query_heads_of_merged_projections(
    simplified: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    """Of queries, keys and values in one weight only the queries lose some."""
    model, graph = load(checkpoint("llama")), simplified("llama")
    kept = [[0, 3], [1, 2]]
    for layer, heads in enumerate(kept):
        gone = [head for head in range(HEADS) if head not in heads]
        zero_inputs(model, layer, "self_attn.o_proj", features(gone))
    put(graph, model.state_dict())
    merge_projections(graph)
    attentions = [node for node in graph.graph if node.op_type == "Attention"]
    for attention, heads in zip(attentions, kept, strict=True):
        slicing = Slicing(attention.outputs[0], Cut(-3, tuple(heads)))
        assert slicing.parts
        remove(graph, slicing, {})
    assert_same(logits(graph, VOCABULARY), model)
