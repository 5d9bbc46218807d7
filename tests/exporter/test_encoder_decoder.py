"""Exporting encoder-decoders: what is traced row by row, what the gate sees, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from engines.pruning.plan import Pruning
from engines.quantization.recipe import Recipe
from exporter.export import Request, plan_export
from exporter.gate import Subject, check_parity
from exporter.traits.half_clamping import ClampedHalves
from exporter.traits.positions import told_positions
from exporter.traits.relative_positions import biased_by_row
from serving.bundle import open_bundle
from serving.engine import IntArray
from serving.errors import UserError
from serving.source_encoder import SourceEncoder
from tests.encoder_decoders import make_encoder_decoder, shared_bundle
from tests.exports import export_bundle

PAST = torch.tensor([0, 3, 170])


def test_rows_have_the_bias_of_their_own_positions() -> None:
    config = T5Config(d_model=8, num_heads=2, is_decoder=True)
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    nn.init.normal_(attention.relative_attention_bias.weight)
    queries, keys = 4, 180
    expected = [attention.compute_bias(queries, keys, past_seen_tokens=int(p))[0] for p in PAST]
    with torch.no_grad(), biased_by_row(attention, PAST):
        got = attention.compute_bias(queries, keys)
    for row, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        for query in range(queries):
            seen = slice(0, int(PAST[row]) + query + 1)  # others are hidden by the causal mask
            torch.testing.assert_close(ours[:, query, seen], theirs[:, query, seen].detach())


def test_rows_count_positions_on_from_their_own_length() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = M2M100SinusoidalPositionalEmbedding(300, 8, padding_idx=1)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            embedded: torch.Tensor = self.positions(ids, None, 0)
            return embedded

    decoder, ids = Decoder(), torch.tensor([[5, 6, 7]] * len(PAST))
    expected = [decoder.positions(ids[:1], None, int(past))[0] for past in PAST]
    with told_positions(decoder, PAST[:, None] + torch.arange(3)[None]):
        torch.testing.assert_close(decoder(ids), torch.stack(expected))


def test_halves_are_clamped_whether_or_not_they_are_finite() -> None:
    def bart(states: torch.Tensor) -> torch.Tensor:
        if states.dtype == torch.float16 and not torch.isfinite(states).all():
            bound = torch.finfo(states.dtype).max - 1000
            states = torch.clamp(states, min=-bound, max=bound)
        return states

    def t5(states: torch.Tensor) -> torch.Tensor:
        largest = torch.finfo(states.dtype).max
        bound = torch.where(torch.isinf(states).any(), largest - 1000, largest)
        return torch.clamp(states, min=-bound, max=bound)

    for layer in (bart, t5):
        finite = torch.tensor([1.0, -2.0], dtype=torch.float16)
        infinite = torch.tensor([torch.inf, -2.0], dtype=torch.float16)
        with ClampedHalves():
            torch.testing.assert_close(layer(finite), finite)
            clamped = layer(infinite)
        assert float(clamped[0]) == pytest.approx(64504, abs=32)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with a layer in each part, exported in float16 with int8 weights for both targets."""
    directory = tmp_path_factory.mktemp("t5")
    make_encoder_decoder("t5", directory / "checkpoint", num_layers=1, num_decoder_layers=1)
    export_bundle(
        directory / "checkpoint",
        directory / "bundle",
        dtype="float16",
        targets=("onnxruntime", "tensorrt-rtx"),
        max_length=96,
        max_source_length=160,
        recipe=Recipe(bits=8),
    )
    return directory


def test_engines_are_built_for_every_target(smallest: Path) -> None:
    manifest = open_bundle(smallest / "bundle").manifest
    assert manifest.graph.source is not None
    assert manifest.graph.source.max_length == 160
    assert [engine.encoder for engine in manifest.engines] == [
        "encoder.onnx",
        "encoder.tensorrt-rtx.engine",
    ]
    assert manifest.graph.is_quantized
    assert manifest.quality is not None
    for engine in manifest.quality["engines"]:  # ONNX Runtime's, and the graph of TensorRT's
        assert engine["overall"]["mean_kl"] < 0.02
    weights = [engine.weight_bytes + engine.encoder_weight_bytes for engine in manifest.engines]
    assert max(weights) < 0.8 * manifest.model.weight_bytes


def test_the_gate_sees_a_source_that_is_not_masked(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bart = shared_bundle(tmp_path_factory, "bart")
    checkpoint, plan = plan_export(Request(str(bart / "checkpoint"), bart / "other"))
    graph = open_bundle(bart / "bundle").manifest.graph
    run = SourceEncoder.run

    def without_lengths(self: SourceEncoder, sources: list[IntArray], first_slot: int) -> None:
        run(self, sources, first_slot)
        slots = slice(first_slot, first_slot + len(sources))
        self._source.lengths[slots] = max(map(len, sources))

    monkeypatch.setattr(SourceEncoder, "run", without_lengths)
    parity = check_parity(checkpoint, plan, [Subject(bart / "bundle", graph, ("onnxruntime",))])
    assert not parity.passed
    errors = {each.name: each.max_error for each in parity.comparisons}
    assert errors["prefill"] < parity.tolerance_max < errors["chunked prefill"]


@pytest.mark.parametrize(
    "options",
    [
        {"lora": True},
        {"stages": 2},
        {"tensor_parallel": 2},
        {"strip_weights": True},
        {"bisect": True},
        {"pruning": Pruning(weights=0.5)},
        {"recipe": Recipe(bits=8, activations=True)},
        {"recipe": Recipe(kv_cache=True)},
        {"recipe": Recipe(bits=4)},
    ],
)
def test_options_that_are_refused(options: dict[str, Any], smallest: Path) -> None:
    request = Request(str(smallest / "checkpoint"), smallest / "other", **options)
    with pytest.raises(UserError, match="encoder-decoders"):
        plan_export(request)
