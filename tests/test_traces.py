"""A graph that tests read again is what tracing the model at hand would give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from exporter import tracing
from exporter.tracing import CacheLayer, cache_layers
from tests.checkpoints import make_checkpoint
from tests.traces import traced_once

Traced = list[PreTrainedModel]


def tiny(
    directory: Path, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    checkpoint = make_checkpoint("opt", directory, **settings)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., Traced]:
    """Return a function that traces models through one memory, and says which were traced.

    What it traces is nothing: the graph has no node.
    """
    factory: Any = type("Factory", (), {"getbasetemp": lambda _: tmp_path / "worker"})()
    traced: Traced = []

    def empty(model: PreTrainedModel, _: list[CacheLayer | None]) -> ir.Model:
        traced.append(model)
        return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=11)

    again = traced_once(empty, factory)

    def trace(*models: PreTrainedModel) -> Traced:
        traced.clear()
        for model in models:
            again(model, [])
        return list(traced)

    return trace


def test_a_graph_that_is_read_again_has_the_weights_at_hand(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, other = tiny(tmp_path / "model"), tiny(tmp_path / "other", seed=1)
    again = traced_once(tracing.trace, tmp_path_factory)
    again(model, cache_layers(model))
    read, expected = again(other, cache_layers(other)), tracing.trace(other, cache_layers(other))
    assert ir.to_proto(read) == ir.to_proto(expected)


def test_weights_are_no_matter(trace: Callable[..., Traced], tmp_path: Path) -> None:
    model, other = tiny(tmp_path / "model"), tiny(tmp_path / "other", seed=1)
    assert trace(model, other, model) == [model]


def test_all_else_is_traced(
    trace: Callable[..., Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [
        tiny(tmp_path / "model"),
        tiny(tmp_path / "half", dtype=torch.float16),
        tiny(tmp_path / "deep", num_hidden_layers=3),
        tiny(tmp_path / "untied", tie_word_embeddings=False),
        tiny(tmp_path / "gelu", activation_function="gelu"),
    ]
    assert trace(*models, *models) == models
    layer = type(models[0].model.decoder.layers[0])
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: forward(*args, **kwargs))
    assert trace(models[0], models[0]) == [models[0]] * 2
