"""Unrolling gives the graph that tracing every layer gives, or leaves it to plain tracing."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from exporter import unrolling
from exporter.tracing import CacheLayer, cache_layers, trace
from exporter.unrolling import trace_unrolled
from tests.checkpoints import make_checkpoint


def deep(architecture: str, directory: Path, layers: int) -> PreTrainedModel:
    checkpoint = make_checkpoint(architecture, directory, num_hidden_layers=layers)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def nodes(graph: ir.Model) -> list[tuple[Any, ...]]:
    """All that a node says, apart from which layer's buffer it reads the common capacity off."""
    return sorted(
        (
            node.name,
            node.op_type,
            "" if node.op_type == "Shape" else [v and constant_or_name(v) for v in node.inputs],
            sorted(node.metadata_props.items()),
            sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()),
        )
        for node in graph.graph
    )


def constant_or_name(value: ir.Value) -> str:
    small = value.const_value is not None and value.const_value.size < 64
    return str(value.const_value.numpy().tolist()) if small else str(value.name)


@pytest.mark.parametrize(("architecture", "layers"), [("qwen2", 5), ("gemma2", 7), ("bloom", 4)])
def test_same_graph_as_tracing_every_layer(
    architecture: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep(architecture, tmp_path / "checkpoint", layers)
    cache = cache_layers(model)
    traced = []

    def count(model: PreTrainedModel, cache: list[CacheLayer | None]) -> ir.Model:
        traced.append(len(cache))
        return trace(model, cache)

    monkeypatch.setattr(unrolling, "trace", count)
    unrolled, whole = trace_unrolled(model, cache), trace(model, cache)
    assert len(traced) == 1
    assert traced[0] < layers
    assert [v.name for v in unrolled.graph.inputs] == [v.name for v in whole.graph.inputs]
    assert [v.name for v in unrolled.graph.outputs] == [v.name for v in whole.graph.outputs]
    assert nodes(unrolled) == nodes(whole)
    for name, value in whole.graph.initializers.items():
        if value.const_value is not None and value.const_value.size >= 64:
            other = unrolled.graph.initializers[name].const_value
            assert other is not None
            assert other.tobytes() == value.const_value.tobytes(), name


def test_layers_that_differ_by_their_index_are_all_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep("qwen2", tmp_path / "checkpoint", 4)
    cache = cache_layers(model)
    layer_class = type(model.model.layers[0])
    forward = layer_class.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs) * (1 + self.self_attn.layer_idx)

    monkeypatch.setattr(layer_class, "forward", scaled)
    assert nodes(trace_unrolled(model, cache)) == nodes(trace(model, cache))
