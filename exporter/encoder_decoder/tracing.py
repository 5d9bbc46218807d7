"""Model to graphs: traces any encoder-decoder through transformers' attention and cache interfaces.

Every decoder layer's keys and values of the source are made in the encoder graph: the whole model
is traced with one decoder token, cross-attention's cache is what comes out, and what it doesn't
need of the decoder goes.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from exporter.attention import AttentionTrace, UntraceableError, register, tracing_attention
from exporter.buffers import BufferCache
from exporter.encoder_decoder.source_cache import Pair, SourceCache
from exporter.lengths import longest_sequence
from exporter.tracing import (
    CacheLayer,
    cache_layer,
    clean_trace,
    export_implementations,
    only_positions,
    to_onnx,
    why_failed,
)
from exporter.traits.experts import register_experts
from exporter.traits.listed_experts import check_listed_experts
from exporter.traits.positions import told_positions
from exporter.traits.relative_positions import biased_by_row
from exporter.traits.states import why_no_cache
from serving.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    cross_name,
    past_name,
    present_name,
)


@dataclass(frozen=True)
class Layers:
    """What each decoder layer keeps: of the tokens so far, and of the source."""

    own: tuple[CacheLayer, ...]
    source: tuple[CacheLayer, ...]


@dataclass
class SourceStates(BaseModelOutput):  # type: ignore[misc]  # transformers has no types
    """What an encoder gives, to whatever decoder: some look for what routers of experts gave."""

    router_logits: tuple[torch.Tensor, ...] | None = None


class EncoderGraph(nn.Module):
    """An encoder with what decoder layers make of its output, as the contract has it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """All layers' keys and values of the source in order, T [batch, heads, source, dim]."""
        return [
            tensor
            for pair in record_source(self.model, input_ids, attention_mask)
            for tensor in pair
        ]


class DecoderGraph(nn.Module):
    """A decoder with the contract's inputs and outputs, whose source is given."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        past_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        source_lengths: torch.Tensor,
        past: list[torch.Tensor],
        source: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """One step: logits of the positions asked for, then the updated buffers in order."""
        batch, sequence = input_ids.shape
        own = BufferCache([*_pairs(past)], past_lengths)
        cache = EncoderDecoderCache(own, SourceCache(_pairs(source)))
        max_source = source[0].shape[2]
        mask = torch.arange(max_source)[None, :] < source_lengths[:, None]
        # Only its length is looked at: the source's keys and values are there.
        states = torch.zeros(batch, max_source, 1, dtype=source[0].dtype)
        trace = AttentionTrace(past_lengths, past_lengths + sequence, has_padding=True)
        decoder = self.model.get_decoder()
        positions = past_lengths[:, None] + torch.arange(sequence)[None, :]
        keywords = _known(self.model, use_cache=True, decoder_position_ids=positions)
        with (
            tracing_attention(trace),
            only_positions(self.model, logits_positions),
            told_positions(self.model, positions),
            biased_by_row(decoder, past_lengths),
        ):
            output = self.model(
                encoder_outputs=SourceStates(last_hidden_state=states),
                attention_mask=mask.long(),
                decoder_input_ids=input_ids,
                past_key_values=cache,
                return_dict=True,
                **keywords,
            )
        present = [tensor for layer in own.buffer_layers for tensor in (layer.keys, layer.values)]
        return [output.logits, *present]


def record_source(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> list[Pair]:
    """Keys and values of the source in every decoder layer, by running one decoder token."""
    cache = _run_one_token(model, input_ids, attention_mask).cross_attention_cache
    assert isinstance(cache, SourceCache)
    return cache.pairs


def _run_one_token(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> Any:
    """The cache that a model leaves after a whole source and one decoder token."""
    nothing = torch.zeros(input_ids.shape[0], dtype=torch.int64)
    cache = EncoderDecoderCache(DynamicCache(), SourceCache())
    trace = AttentionTrace(nothing, nothing + 1, has_padding=True)
    with tracing_attention(trace):
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=torch.ones(input_ids.shape[0], 1, dtype=torch.int64),
            past_key_values=cache,
            return_dict=True,
            **_known(model, use_cache=True),
        )
    return output.past_key_values


def _known(model: PreTrainedModel, **options: Any) -> dict[str, Any]:
    """The options that a model takes by name; others it would hand to its encoder too."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in options.items() if name in known}


def probe_layers(model: PreTrainedModel) -> Layers:
    """What the layers of ``model`` keep, found by running it once.

    Raises UntraceableError for a model whose state isn't keys and values alone.
    """
    _check_head(model)
    register()
    register_experts()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad(), export_implementations(model):
        try:
            cache = _run_one_token(model, ids, torch.ones_like(ids))
        except UntraceableError:
            raise
        except Exception as error:  # the model's own code, which fails in any way that it has
            raise UntraceableError(why_failed(model, "running", error)) from error
    if not isinstance(cache, EncoderDecoderCache):
        raise UntraceableError(why_no_cache(cache))
    own = [cache_layer(layer) for layer in cache.self_attention_cache.layers]
    source = [_shape(pair) for pair in cache.cross_attention_cache.pairs]
    if len(own) != len(source) or None in own or not own:
        raise UntraceableError("its decoder layers don't each attend to themselves and to a source")
    return Layers(tuple(layer for layer in own if layer), tuple(source))


def _check_head(model: PreTrainedModel) -> None:
    """Raise UntraceableError where logits don't come, token by token, from a head of their own."""
    if getattr(model.config, "ngram", 1) > 1:
        raise UntraceableError("its decoder predicts several tokens at once")
    if isinstance(model.get_output_embeddings(), nn.Embedding):
        raise UntraceableError("its decoder gives logits itself, and at every position")


def trace_encoder(model: PreTrainedModel, layers: Layers) -> ir.Model:
    """Trace the encoder graph: standard operators of opset 24 and nothing else.

    Raises UntraceableError if the model's code can't be traced, or runs the wrong experts.
    """
    check_listed_experts(model)
    batch, source = torch.export.Dim("batch"), torch.export.Dim("source", min=2, max=_most(model))
    inputs = (torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    axes = ({0: batch, 1: source},) * 2
    outputs = [cross_name(*name) for name in _names(layers)]
    return _trace(model, EncoderGraph(model), inputs, axes, [INPUT_IDS, ATTENTION_MASK], outputs)


def trace_decoder(model: PreTrainedModel, layers: Layers) -> ir.Model:
    """Trace the decoder graph, see ``trace_encoder``."""
    batch, sequence, capacity, most = 2, 5, 13, 11
    rows, columns = torch.export.Dim("batch"), torch.export.Dim("sequence", max=_most(model))
    longest = torch.export.Dim("max_sequence", min=4, max=_most(model))
    source = torch.export.Dim("max_source", min=2, max=_most(model))
    past, cross = (
        [
            torch.zeros(batch, layer.kv_heads, length, dim, dtype=model.dtype)
            for layer in of
            for dim in (layer.key_dim, layer.value_dim)
        ]
        for of, length in ((layers.own, capacity), (layers.source, most))
    )
    inputs = (
        torch.ones(batch, sequence, dtype=torch.int64),
        torch.tensor([3, 1]),
        torch.tensor([[0, 1, 4], [0, 2, 3]]),
        torch.tensor([9, 4]),
        past,
        cross,
    )
    axes = (
        {0: rows, 1: columns},
        {0: rows},
        {0: rows, 1: torch.export.Dim("positions")},
        {0: rows},
        [{0: rows, 2: longest}] * len(past),
        [{0: rows, 2: source}] * len(cross),
    )
    names = _names(layers)
    given = [INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, SOURCE_LENGTHS]
    given += [past_name(*name) for name in names] + [cross_name(*name) for name in names]
    results = [LOGITS, *(present_name(*name) for name in names)]
    return _trace(model, DecoderGraph(model), inputs, axes, given, results)


def _trace(
    model: PreTrainedModel,
    module: nn.Module,
    inputs: tuple[Any, ...],
    axes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> ir.Model:
    register()
    register_experts()
    try:
        with export_implementations(model):
            program, graph = to_onnx(module, inputs, axes, input_names, output_names)
    except UntraceableError:
        raise
    except Exception as error:  # tracing runs the model's code and fails in any way that has
        raise UntraceableError(why_failed(model, "tracing", error)) from error
    clean_trace(graph, program)
    return graph


def _most(model: PreTrainedModel) -> int | None:
    """So many tokens at most, so that a model may check its tables for that."""
    longest = longest_sequence(model)
    return longest if longest is not None and longest > 13 else None


def _names(layers: Layers) -> list[tuple[int, Any]]:
    return [(i, part) for i in range(len(layers.own)) for part in PARTS]


def _shape(pair: Pair) -> CacheLayer:
    keys, values = pair
    return CacheLayer(keys.shape[1], keys.shape[3], values.shape[3])


def _pairs(tensors: list[torch.Tensor]) -> list[Pair]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))
