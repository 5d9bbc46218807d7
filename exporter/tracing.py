"""Model to graph: traces any decoder through transformers' attention and cache interfaces."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from exporter.attention import (
    EXPORT,
    AttentionTrace,
    UntraceableError,
    additive_masks,
    register,
    tracing_attention,
)
from exporter.buffers import BufferCache
from exporter.lengths import longest_sequence
from exporter.simplify import simplify
from exporter.traits.complex_rotation import RealPairs
from exporter.traits.experts import register_experts
from exporter.traits.fused_attention import FusedAttention
from exporter.traits.half_clamping import ClampedHalves
from exporter.traits.listed_experts import listed_experts_for_all
from exporter.traits.own_attention import fuse_own_attention
from exporter.traits.positions import position_offset, told_positions
from exporter.traits.states import RECURRENT, why_no_cache, why_not_keys_and_values
from serving.contract import (
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    past_name,
    present_name,
)

OPSET = 24
# What a trace says where one length would do and another wouldn't.
_DEPENDING_ON_LENGTHS = ("Constraints violated", "Specializations unexpectedly required")
# What a trace says where code asks for the value of a tensor.
_DEPENDING_ON_DATA = ("aten.nonzero", "aten._local_scalar_dense", "data-dependent")


class DecoderGraph(nn.Module):
    """A decoder with the contract's inputs and outputs (see serving/contract.py)."""

    def __init__(self, model: PreTrainedModel, cache_layers: list[bool]) -> None:
        super().__init__()
        self.model = model
        self.cache_layers = cache_layers
        self.accepts = inspect.signature(model.forward).parameters.keys()
        self.first_position = position_offset(model)

    def forward(
        self,
        input_ids: torch.Tensor,
        past_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        past: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """One step: logits of the positions asked for, then the updated buffers in order."""
        pairs = iter(list(zip(past[::2], past[1::2], strict=True)))
        cache = BufferCache(
            [next(pairs) if own else None for own in self.cache_layers], past_lengths
        )
        sequence = input_ids.shape[1]
        positions = past_lengths[:, None] + torch.arange(sequence)[None, :]
        trace = AttentionTrace(past_lengths, past_lengths + sequence)
        keywords: dict[str, torch.Tensor] = {}
        if "position_ids" in self.accepts:
            keywords["position_ids"] = positions + self.first_position
        if (
            "attention_mask" in self.accepts
        ):  # nothing is padding; some models take positions from it
            keywords["attention_mask"] = torch.ones(input_ids.shape[0], past[0].shape[2]).long()
        with (
            tracing_attention(trace),
            only_positions(self.model, logits_positions),
            told_positions(self.model, positions),
        ):
            output = self.model(
                input_ids=input_ids,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
                **keywords,
            )
        present = [tensor for layer in cache.buffer_layers for tensor in (layer.keys, layer.values)]
        return [output.logits, *present]


@contextmanager
def only_positions(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Let the language model head see only the positions asked for, int64 [batch, n]."""

    def gather(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = inputs
        index = positions[:, :, None].expand(-1, -1, hidden.shape[-1])
        return (torch.gather(hidden, 1, index), *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class CacheLayer:
    """Shape of one layer's cached keys and values."""

    kv_heads: int
    key_dim: int
    value_dim: int


def cache_layers(model: PreTrainedModel) -> list[CacheLayer | None]:
    """What each cache layer of ``model`` holds, found by running two tokens; None holds nothing.

    Raises UntraceableError for a model whose state isn't keys and values alone.
    """
    register()
    register_experts()
    tokens, past_lengths = torch.tensor([[0, 1]]), torch.tensor([0])
    keywords = {}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        keywords["attention_mask"] = torch.ones_like(tokens)  # or it looks for padding
    trace = AttentionTrace(past_lengths, past_lengths + 2)
    with torch.no_grad(), export_implementations(model), tracing_attention(trace):
        try:
            output = model(input_ids=tokens, use_cache=True, return_dict=True, **keywords)
        except UntraceableError:
            raise
        except Exception as error:  # the model's own code, which fails in any way that it has
            raise UntraceableError(why_failed(model, "running", error)) from error
    cache = getattr(output, "past_key_values", None)
    cache = getattr(cache, "self_attention_cache", cache)
    if not isinstance(cache, Cache):
        raise UntraceableError(why_no_cache(output))
    return [cache_layer(layer) for layer in cache.layers]


def cache_layer(layer: Any) -> CacheLayer | None:
    """What a layer of transformers' cache holds after a step.

    Raises UntraceableError if that isn't keys and values alone.
    """
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer):
        raise UntraceableError(why_not_keys_and_values(layer))
    if isinstance(layer, DummyLayer) or layer.keys is None or layer.values is None:
        return None
    return CacheLayer(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])


def trace(model: PreTrainedModel, layers: list[CacheLayer | None]) -> ir.Model:
    """Trace ``model`` to the decoder graph: standard operators of opset 24 and nothing else.

    Raises UntraceableError if the model's code can't be traced or asks for what the graph can't
    say.
    """
    register()
    register_experts()
    try:
        program, graph = _export(model, layers)
    except UntraceableError:
        raise
    except Exception as error:  # tracing runs the model's code and fails in any way that has
        raise UntraceableError(why_failed(model, "tracing", error)) from error
    clean_trace(graph, program)
    return graph


def clean_trace(graph: ir.Model, program: torch.export.ExportedProgram) -> None:
    """Simplify a fresh trace in place, and bring written-out attention back to nodes."""
    simplify(graph, frozenset(program.state_dict))
    fuse_own_attention(graph)
    CommonSubexpressionEliminationPass()(graph)
    RemoveUnusedNodesPass()(graph)


def _export(
    model: PreTrainedModel, layers: list[CacheLayer | None]
) -> tuple[torch.export.ExportedProgram, ir.Model]:
    buffers = [layer for layer in layers if layer is not None]
    inputs, dynamic_shapes = _example(buffers, model.dtype, longest_sequence(model))
    names = [(i, part) for i in range(len(buffers)) for part in PARTS]
    with export_implementations(model):
        return to_onnx(
            DecoderGraph(model, [layer is not None for layer in layers]),
            inputs,
            dynamic_shapes,
            [INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, *(past_name(*n) for n in names)],
            [LOGITS, *(present_name(*n) for n in names)],
        )


def to_onnx(
    module: nn.Module,
    inputs: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> tuple[torch.export.ExportedProgram, ir.Model]:
    """Trace a module with example inputs; returns the program and its graph as it comes."""
    program = torch.export.export(
        module,
        inputs,
        dynamic_shapes=dynamic_shapes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
        input_names=input_names,
        output_names=output_names,
    )
    assert onnx_program is not None
    return program, onnx_program.model


def why_failed(model: PreTrainedModel, doing: str, error: Exception) -> str:
    """Why a model's own code failed, as a clause."""
    if model._is_stateful:
        return RECURRENT
    cause = last_cause(error)
    if cause.startswith(_DEPENDING_ON_LENGTHS):
        return "its code goes different ways for different lengths, and one graph has to serve all"
    if any(operator in cause for operator in _DEPENDING_ON_DATA):
        return "its code goes different ways for different tokens, and one graph has to serve all"
    return f"{doing} it fails ({cause})"


def last_cause(error: BaseException) -> str:
    """The first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def implementations(
    model: nn.Module, *, experts: str, attention: str | None = None
) -> Iterator[None]:
    """Have every part of ``model`` use these implementations; put back what it had."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [
        (config, config._attn_implementation, config._experts_implementation)
        for config in configs.values()
        if isinstance(config, PreTrainedConfig)
    ]
    for config, own_attention, _ in before:
        config._attn_implementation = attention or own_attention
        config._experts_implementation = experts
    try:
        yield
    finally:
        for config, own_attention, own_experts in before:
            config._attn_implementation = own_attention
            config._experts_implementation = own_experts


def language_part(model: PreTrainedModel) -> PreTrainedModel:
    """Of a model that sees or hears too, the part that decodes; else all of it."""
    decoder = model.get_decoder()  # some models have a layer under that name
    return decoder if isinstance(decoder, PreTrainedModel) else model


@contextmanager
def export_implementations(model: PreTrainedModel) -> Iterator[None]:
    """Have ``model`` use our attention, masks and experts.

    A model with attention code of its own keeps that and gets masks it can add to its scores.
    """
    decoder = language_part(model)
    with listed_experts_for_all(model), _attention_and_experts(decoder, model):
        yield


@contextmanager
def _attention_and_experts(decoder: PreTrainedModel, model: PreTrainedModel) -> Iterator[None]:
    if decoder._can_set_attn_implementation():
        with (
            implementations(model, experts=EXPORT, attention=EXPORT),
            RealPairs(),
            ClampedHalves(),
        ):
            yield
    else:
        own = {decoder.config._attn_implementation}
        with (
            implementations(model, experts=EXPORT),
            additive_masks(own),
            FusedAttention(),
            RealPairs(),
            ClampedHalves(),
        ):
            yield


def _example(
    layers: list[CacheLayer], dtype: torch.dtype, longest: int | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Example inputs and their dynamic axes; the sizes are all different and mean nothing.

    No length is more than ``longest``, so that a model may check its tables for that.
    """
    batch, sequence, capacity = 2, 5, 13
    past = [
        torch.zeros(batch, layer.kv_heads, capacity, dim, dtype=dtype)
        for layer in layers
        for dim in (layer.key_dim, layer.value_dim)
    ]
    inputs = (
        torch.ones(batch, sequence, dtype=torch.int64),
        torch.tensor([3, 1]),
        torch.tensor([[0, 1, 4], [0, 2, 3]]),
        past,
    )
    limit = longest if longest is not None and longest > capacity else None
    rows, columns = torch.export.Dim("batch"), torch.export.Dim("sequence", max=limit)
    # Shorter buffers are no use, and some models branch on whether there is any past.
    capacity_axis = torch.export.Dim("max_sequence", min=4, max=limit)
    count = torch.export.Dim("positions")
    axes = (
        {0: rows, 1: columns},
        {0: rows},
        {0: rows, 1: count},
        [{0: rows, 2: capacity_axis}] * len(past),
    )
    return inputs, axes
