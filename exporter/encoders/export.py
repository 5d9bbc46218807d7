"""The whole way of an encoder: checkpoint to graph to engines to a checked bundle."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
from transformers import PreTrainedModel

from engines.quantization.apply import QuantizationReport, quantize
from engines.quantization.recipe import Recipe
from engines.standard import optimize
from engines.tensorrt.options import BuildOptions
from exporter.attention import UntraceableError
from exporter.checkpoint import Checkpoint, find_checkpoint, refuse_non_finite, release_weights
from exporter.encoders.building import (
    EncoderSubject,
    build_encoder_engines,
    encoder_info,
    write_uncompressed,
)
from exporter.encoders.gate import check_encoder_parity, check_encoder_quality
from exporter.encoders.loading import load_encoder, refuse_missing
from exporter.encoders.plan import EncoderPlan, label_names, make_encoder_plan
from exporter.encoders.quality import EncoderQuality
from exporter.encoders.report import EncoderReport
from exporter.encoders.structure import check_encoder_graph
from exporter.encoders.texts import EncoderTexts, encoder_texts
from exporter.encoders.tracing import trace_encoder
from exporter.export import Clock, Stages
from exporter.float16_range import keep_in_range
from exporter.new_bundle import commit_bundle, new_bundle
from exporter.plan import DTYPES, refusal
from exporter.structure import GraphError, WeightAccount, account_weights
from exporter.tokenization import special_tokens, write_tokenizer
from serving.bundle import DType, Target
from serving.encoders.contract import Task
from serving.errors import UserError

_LABELLED = ("text-classification", "token-classification")


@dataclass(frozen=True)
class EncoderRequest:
    """What the user asked for; without a ``task`` it is that of the checkpoint's head."""

    model: str
    bundle: Path
    task: Task | None = None
    dtype: DType = "float32"
    targets: tuple[Target, ...] = ("onnxruntime",)
    max_length: int | None = None
    batch: int = 1
    build_options: BuildOptions = field(default_factory=BuildOptions)
    recipe: Recipe = field(default_factory=Recipe)
    calibration: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False


@dataclass(frozen=True)
class TracedEncoder:
    """The standard graph and what was learnt on the way to it."""

    graph: ir.Model
    source: PreTrainedModel
    """The model whose weights the graph refers to, needed until they are written."""
    weights: WeightAccount
    unused: tuple[str, ...]


def plan_encoder(request: EncoderRequest) -> tuple[Checkpoint, EncoderPlan]:
    """Check the request and the checkpoint's files; raises UserError. No weight is read."""
    checkpoint = find_checkpoint(
        request.model,
        revision=request.revision,
        trust_remote_code=request.trust_remote_code,
        is_decoder=False,
    )
    plan = make_encoder_plan(
        checkpoint,
        request.bundle,
        task=request.task,
        dtype=request.dtype,
        targets=request.targets,
        max_length=request.max_length,
        batch=request.batch,
        build_options=request.build_options,
        recipe=request.recipe,
    )
    return checkpoint, plan


def export_encoder(request: EncoderRequest, stages: Stages) -> EncoderPlan:
    """Export a checkpoint to a checked bundle, or leave nothing behind.

    Raises UserError for whatever the user can mend and for a breach of the parity gate.
    """
    clock = Clock(stages)
    with clock.stage("Checking"):
        checkpoint, plan = plan_encoder(request)
    with new_bundle(request.bundle, plan, force=request.force) as partial:
        _export_into(partial, request, checkpoint, plan, clock)
    return plan


def _export_into(
    partial: Path,
    request: EncoderRequest,
    checkpoint: Checkpoint,
    plan: EncoderPlan,
    clock: Clock,
) -> None:
    texts = None
    if not plan.recipe.is_empty or plan.dtype == "float16":
        with clock.stage("Reading text"):
            texts = encoder_texts(checkpoint, plan.max_length, request.calibration)
    with clock.stage("Tracing"):
        traced = trace_checkpoint(checkpoint, plan)
        labels = label_names(traced.source) if plan.task in _LABELLED else ()
    try:
        optimize(traced.graph)
        before, islands, quantization = _compress(traced.graph, plan, texts, partial, clock)
        with clock.stage("Writing"):
            encoder = encoder_info(traced.graph, plan, checkpoint, labels)
            engines, subjects = build_encoder_engines(
                traced.graph, partial, plan, progress=clock.stages.progress
            )
            write_tokenizer(checkpoint.directory, partial)
    except ValueError as error:  # a pass can't express this architecture
        raise refusal(checkpoint, error) from error
    release_weights(traced.source)
    tokens = special_tokens(checkpoint, encoder.vocab_size)
    with clock.stage("Checking parity"):
        parity = check_encoder_parity(
            checkpoint, plan, encoder, before or subjects, tokens.pad or 0
        )
    if not parity.passed:
        raise UserError(f"{checkpoint.name} was not exported: {parity.reason()}.")
    quality: list[EncoderQuality] = []
    if before and texts is not None:
        with clock.stage("Measuring quality"):
            quality = check_encoder_quality(checkpoint, plan, encoder, subjects, texts.held_out)
    for subject in (*before, *subjects):
        subject.remove()
    EncoderReport(
        plan,
        parity,
        traced.weights,
        traced.unused,
        engines,
        clock.seconds,
        islands,
        quantization,
        quality,
    ).write(partial)
    with clock.stage("Packing"):
        commit_bundle(
            partial,
            request.bundle,
            plan,
            force=request.force,
            encoder=encoder,
            engines=tuple(engines),
            tokens=tokens,
            parity=parity.as_dict(),
            quality={"engines": [q.as_dict() for q in quality]} if quality else None,
        )


def _compress(
    graph: ir.Model, plan: EncoderPlan, texts: EncoderTexts | None, partial: Path, clock: Clock
) -> tuple[list[EncoderSubject], list[str] | None, QuantizationReport]:
    """Make float16 safe and quantise, in place, as the plan says.

    Returns the graph as it was before it was quantised, if it was, the nodes that leave float16's
    range (None for another type) and what quantising came to.
    """
    islands = None
    if plan.dtype == "float16" and texts is not None:
        with clock.stage("Checking range"):
            islands = keep_in_range(graph, plan.model, texts.calibration, partial)
    if plan.recipe.is_empty or texts is None:
        return [], islands, QuantizationReport()
    before = write_uncompressed(graph, partial / "before")
    with clock.stage("Quantising"), TemporaryDirectory(dir=partial) as scratch:
        # The layer that gives embeddings is one like the others.
        is_embed = plan.task == "embed"
        quantization = quantize(
            graph, plan.recipe, texts.calibration, Path(scratch), is_encoder=True, head=is_embed
        )
    return [before], islands, quantization


def trace_checkpoint(checkpoint: Checkpoint, plan: EncoderPlan) -> TracedEncoder:
    """Load a checkpoint and trace it to its standard graph.

    Raises UserError for an architecture that can't be exported, and a head that the checkpoint
    doesn't have.
    """
    loaded = load_encoder(checkpoint, plan.task, DTYPES[plan.dtype])
    refuse_non_finite(checkpoint, loaded.unused)
    model = loaded.model
    try:
        graph = trace_encoder(model, plan.task, plan.sentences, plan.longest)
        check_encoder_graph(graph, plan.task)
        state = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
        weights = account_weights(graph, state)
    except (UntraceableError, GraphError) as error:
        raise refusal(checkpoint, error) from error
    refuse_missing(checkpoint, plan.task, sorted({*loaded.missing} & {*weights.used}))
    return TracedEncoder(graph, model, weights, loaded.unused)
