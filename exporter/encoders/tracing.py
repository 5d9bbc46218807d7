"""Encoder to graph: traced through transformers' attention interface, or with code of its own."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from torch import nn
from transformers import PreTrainedModel

from exporter.attention import EXPORT, UntraceableError
from exporter.encoders.attention import ENCODER, register
from exporter.encoders.pooling import normalize, pool
from exporter.encoders.tasks import SentenceSettings
from exporter.simplify import simplify
from exporter.tracing import OPSET, implementations, last_cause, only_positions
from exporter.traits.complex_rotation import RealPairs
from exporter.traits.experts import register_experts
from serving.contract import ATTENTION_MASK, INPUT_IDS, LOGITS_POSITIONS
from serving.encoders.contract import TOKEN_TYPE_IDS, Task, input_names, output_names

_DEPENDING_ON_DATA = ("aten.nonzero", "aten._local_scalar_dense", "data-dependent")


class EncoderGraph(nn.Module):
    """An encoder with the contract's inputs and outputs (see serving/encoders/contract.py)."""

    def __init__(self, model: PreTrainedModel, task: Task, sentences: SentenceSettings) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.sentences = sentences

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        logits_positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The outputs of the task, in the contract's order."""
        given = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if token_type_ids is not None:
            given[TOKEN_TYPE_IDS] = token_type_ids
        if logits_positions is not None:
            return (self._logits_at(logits_positions, given),)
        output = run_model(self.model, given)
        if self.task == "embed":
            vectors = pool(output.last_hidden_state, attention_mask, self.sentences.pooling)
            vectors = normalize(vectors) if self.sentences.normalize else vectors
            return vectors, output.last_hidden_state
        if self.task == "question-answering":
            return output.start_logits, output.end_logits
        return (output.logits,)

    def _logits_at(self, positions: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of these positions [batch, n] alone: the vocabulary is most of a small model."""
        head = self.model.get_output_embeddings()
        called: list[nn.Module] = []  # some models multiply by its weight themselves
        with ExitStack() as hooks:
            if head is not None:
                hooks.enter_context(only_positions(self.model, positions))
                seen = head.register_forward_pre_hook(lambda module, _: called.append(module))
                hooks.callback(seen.remove)
            logits: torch.Tensor = run_model(self.model, given).logits
        if not called:
            logits = logits.gather(1, positions[:, :, None].expand(-1, -1, logits.shape[2]))
        return logits


def run_model(model: PreTrainedModel, given: dict[str, torch.Tensor]) -> Any:
    """What transformers gives for these inputs; nothing is kept for later tokens."""
    keywords: dict[str, Any] = dict(given)
    if "use_cache" in inspect.signature(model.forward).parameters:
        keywords["use_cache"] = False
    return model(return_dict=True, **keywords)


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether ``model`` tells the texts of a pair apart by token types."""
    has_types = getattr(model.config, "type_vocab_size", 0) or 0
    return TOKEN_TYPE_IDS in inspect.signature(model.forward).parameters and has_types > 1


def trace_encoder(
    model: PreTrainedModel, task: Task, sentences: SentenceSettings, longest: int | None
) -> ir.Model:
    """Trace ``model`` to the encoder graph: standard operators of opset 24 and nothing else.

    ``longest`` is the most tokens that it has positions for, if it says so. Raises UntraceableError
    if its code can't be traced or asks for what the graph can't say.
    """
    register()
    register_experts()
    names = input_names(task, token_types=takes_token_types(model))
    try:
        program, exported = _export(model, task, sentences, names, longest)
    except UntraceableError:
        raise
    except Exception as error:  # tracing runs the model's code and fails in any way that has
        raise UntraceableError(_why_failed(error)) from error
    graph = exported.model
    simplify(graph, frozenset(program.state_dict))
    CommonSubexpressionEliminationPass()(graph)
    RemoveUnusedNodesPass()(graph)
    return graph


def _export(
    model: PreTrainedModel,
    task: Task,
    sentences: SentenceSettings,
    names: tuple[str, ...],
    longest: int | None,
) -> tuple[torch.export.ExportedProgram, torch.onnx.ONNXProgram]:
    # All sizes are different and mean nothing, but that batches of one are special to the tracer.
    rows, columns = torch.export.Dim("batch"), torch.export.Dim("sequence", max=longest)
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.arange(3, 3 + 2 * 7).reshape(2, 7) % (vocab_size - 1) + 1
    masks = torch.ones(2, 7, dtype=torch.int64)
    masks[1, 5:] = 0
    example = {
        INPUT_IDS: tokens,
        ATTENTION_MASK: masks,
        TOKEN_TYPE_IDS: torch.zeros(2, 7, dtype=torch.int64),
        LOGITS_POSITIONS: torch.tensor([[0, 1, 4], [0, 2, 3]]),
    }
    axes: dict[str, dict[int, Any]] = {name: {0: rows, 1: columns} for name in example}
    axes[LOGITS_POSITIONS] = {0: rows, 1: torch.export.Dim("positions")}
    with encoder_implementations(model):
        program = torch.export.export(
            EncoderGraph(model, task, sentences),
            (),
            {name: example[name] for name in names},
            dynamic_shapes={name: axes[name] for name in names},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
        input_names=list(names),
        output_names=list(output_names(task)),
    )
    assert exported is not None
    return program, exported


@contextmanager
def encoder_implementations(model: PreTrainedModel) -> Iterator[None]:
    """Have ``model`` use our attention, masks and experts.

    A model with attention code of its own keeps that, and the masks that go with it.
    """
    own = None if model._can_set_attn_implementation() else "eager"
    with implementations(model, experts=EXPORT, attention=own or ENCODER), RealPairs():
        yield


def _why_failed(error: Exception) -> str:
    """Why a model's own code failed, as a clause."""
    cause = last_cause(error)
    if cause.startswith("Constraints violated"):
        return "its code goes different ways for different lengths, and one graph has to serve all"
    if any(operator in cause for operator in _DEPENDING_ON_DATA):
        return "its code goes different ways for different tokens, and one graph has to serve all"
    return f"tracing it fails ({cause})"
