"""The whole way: checkpoint to graph to engines to a checked bundle."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import onnx_ir as ir
from transformers import PreTrainedModel

from engines.passes.tensor_parallel import split_into_ranks
from engines.pruning.plan import Pruning
from engines.quality import QualityLimits
from engines.quantization.recipe import Recipe
from engines.standard import optimize, simplify
from engines.tensorrt.options import BuildOptions
from exporter.adapters import refuse_lost
from exporter.attention import UntraceableError
from exporter.building import build_engines, graph_info, write_uncompressed
from exporter.calibration_windows import token_windows
from exporter.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load,
    refuse_non_finite,
    release_weights,
)
from exporter.compression import compress
from exporter.encoder_decoder.export import build_encoder_decoder, refuse_options
from exporter.float16_range import keep_in_range
from exporter.gate import check_parity, explain_breach
from exporter.new_bundle import commit_bundle, new_bundle
from exporter.plan import DTYPES, Plan, make_plan, refusal
from exporter.quality_gate import check_quality
from exporter.report import Report
from exporter.staging import build_stages
from exporter.stripping import refuse_stripping, strip_engines
from exporter.structure import GraphError, WeightAccount, account_weights, check_graph
from exporter.tokenization import special_tokens, write_tokenizer
from exporter.unrolling import trace_unrolled
from serving.bundle import DType, Target
from serving.errors import UserError


class Stages(Protocol):
    """Shows which stage runs."""

    def start(self, name: str) -> None:
        """A stage begins; the one before it is done."""

    def progress(self, phase: str, done: float) -> None:
        """A part of the stage is at work, and ``done``, from 0 to 1, of the parts are done."""


@dataclass
class Clock:
    """Tells the stages to whoever shows them and measures each, in seconds."""

    stages: Stages
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run one stage."""
        self.stages.start(name)
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begin, 2)


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    model: str
    bundle: Path
    dtype: DType = "float32"
    targets: tuple[Target, ...] = ("onnxruntime",)
    max_length: int | None = None
    max_source_length: int | None = None
    batch: int = 1
    prefill_chunk: int | None = None
    build_options: BuildOptions = field(default_factory=BuildOptions)
    strip_weights: bool = False
    tensor_parallel: int = 1
    stages: int = 1
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False
    bisect: bool = False
    pruning: Pruning = field(default_factory=Pruning)
    recipe: Recipe = field(default_factory=Recipe)
    lora: bool = False
    lora_modules: tuple[str, ...] = ()
    """The linear layers that take LoRA adapters, by their last names; () stands for all."""
    calibration: Path | None = None
    """Text to calibrate with and to measure quality on; None stands for a default."""
    limits: QualityLimits = field(default_factory=QualityLimits)

    @property
    def asks_for_quality(self) -> bool:
        """Whether the user wants the quality measured, whatever the precision."""
        return self.calibration is not None or self.limits != QualityLimits()


@dataclass(frozen=True)
class TracedGraph:
    """The standard graph and what was learnt on the way to it."""

    model: ir.Model
    source: PreTrainedModel
    """The model whose weights the graph refers to, needed until they are written."""
    weights: WeightAccount
    unused: tuple[str, ...]


def plan_export(request: Request) -> tuple[Checkpoint, Plan]:
    """Check the request and the checkpoint's files; raises UserError. No weight is read."""
    if request.bisect and request.stages > 1:
        raise UserError("--bisect looks at a graph in one piece: leave --stages out with it.")
    if request.bisect and request.lora:
        raise UserError("--bisect looks at a graph without adapters: leave --lora out with it.")
    checkpoint = find_checkpoint(
        request.model, revision=request.revision, trust_remote_code=request.trust_remote_code
    )
    if checkpoint.is_encoder_decoder:
        refuse_options(request)
    plan = make_plan(
        checkpoint,
        request.bundle,
        dtype=request.dtype,
        targets=request.targets,
        max_length=request.max_length,
        max_source_length=request.max_source_length,
        batch=request.batch,
        prefill_chunk=request.prefill_chunk,
        build_options=request.build_options,
        tensor_parallel=request.tensor_parallel,
        stages=request.stages,
        pruning=request.pruning,
        recipe=request.recipe,
        lora=request.lora,
        lora_modules=request.lora_modules,
    )
    if request.strip_weights:
        refuse_stripping(plan)
    return checkpoint, plan


def export(request: Request, stages: Stages) -> Plan:
    """Export a checkpoint to a checked bundle, or leave nothing behind.

    Raises UserError for whatever the user can mend and for a breach of the parity gate.
    """
    clock = Clock(stages)
    with clock.stage("Checking"):
        checkpoint, plan = plan_export(request)
    with new_bundle(request.bundle, plan, force=request.force) as partial:
        _export_into(partial, request, checkpoint, plan, clock)
    return plan


def _export_into(
    partial: Path, request: Request, checkpoint: Checkpoint, plan: Plan, clock: Clock
) -> None:
    build = build_encoder_decoder if checkpoint.is_encoder_decoder else _build_decoder
    report = build(partial, request, checkpoint, plan, clock)
    report.write(partial)
    with clock.stage("Packing"):
        commit_bundle(
            partial,
            request.bundle,
            plan,
            force=request.force,
            graph=report.graph,
            engines=tuple(report.engines),
            tokens=special_tokens(checkpoint, report.graph.vocab_size),
            parity=report.parity.as_dict(),
            quality=report.quality.as_dict() if report.quality is not None else None,
        )


def _build_decoder(
    partial: Path, request: Request, checkpoint: Checkpoint, plan: Plan, clock: Clock
) -> Report:
    """Make a decoder's engines in ``partial``, and check them."""
    windows = None
    measures_quality = plan.is_compressed or request.asks_for_quality
    if measures_quality or plan.dtype == "float16":
        with clock.stage("Reading text"):
            windows = token_windows(checkpoint, plan.max_length, request.calibration)
    with clock.stage("Tracing"):
        traced = _trace(checkpoint, plan)
    try:
        split_into_ranks(traced.model, plan.tensor_parallel)  # what can't be split is refused now
        before, compression, islands = [], None, None
        if plan.is_compressed and windows is not None:
            with clock.stage("Compressing"), TemporaryDirectory(dir=partial) as scratch:
                before = [write_uncompressed(traced.model, partial / "before", plan)]
                compression, islands = compress(
                    traced.model, checkpoint, plan, windows, Path(scratch)
                )
        else:
            optimize(traced.model, plan.adapted)
            if plan.dtype == "float16" and windows is not None:
                with clock.stage("Checking range"):
                    islands = keep_in_range(
                        traced.model, checkpoint.name, list(windows.calibration), partial
                    )
        with clock.stage("Writing"):
            graph = graph_info(traced.model, plan)
            if request.lora:
                refuse_lost(graph.lora, request.lora_modules)
            build = build_stages if plan.stages > 1 else build_engines
            engines, subjects = build(
                traced.model, partial, graph, plan, progress=clock.stages.progress
            )
            write_tokenizer(checkpoint.directory, partial)
    except ValueError as error:  # a pass can't express this architecture
        raise refusal(checkpoint, error) from error
    release_weights(traced.source)  # they are on disk now; the engine maps them from there
    with clock.stage("Checking parity"):
        parity = check_parity(checkpoint, plan, before or subjects)
    if not parity.passed:
        checked = (before or subjects)[0]
        raise UserError(explain_breach(checkpoint, checked, parity, bisect=request.bisect))
    quality = None
    if measures_quality and windows is not None:
        with clock.stage("Measuring quality"):
            quality = check_quality(checkpoint, plan, subjects, windows, request.limits, partial)
    for subject in (*before, *subjects):
        subject.remove()
    if request.strip_weights:
        with clock.stage("Stripping weights"):
            engines = strip_engines(engines, partial, checkpoint, plan)
    return Report(
        plan,
        graph,
        parity,
        traced.weights,
        traced.unused,
        engines,
        clock.seconds,
        islands if plan.dtype == "float16" else None,
        compression,
        quality,
    )


def _trace(checkpoint: Checkpoint, plan: Plan) -> TracedGraph:
    loaded = load(checkpoint, DTYPES[plan.dtype])
    refuse_non_finite(checkpoint, loaded.unused)
    model = loaded.model
    try:
        graph = trace_unrolled(model, list(plan.cache))
        check_graph(graph, len(plan.layers), shared=len(plan.layers) < len(plan.cache))
        state = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
        weights = account_weights(graph, state)
    except (UntraceableError, GraphError) as error:
        raise refusal(checkpoint, error) from error
    simplify(graph)
    return TracedGraph(graph, model, weights, loaded.unused)
