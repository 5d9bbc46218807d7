"""The whole way: checkpoint to graph to engines to a checked bundle."""

import errno
import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import onnx_ir as ir
from transformers import PreTrainedModel

from engines import onnxruntime as onnxruntime_target
from engines.linears import find_linears
from engines.packing import checksums, commit, reserved
from engines.passes.sizes import static_size
from engines.pruning.plan import Pruning
from engines.quality import QualityLimits
from engines.quantization.recipe import Recipe
from engines.standard import optimize
from exporter.attention import UntraceableError
from exporter.calibration_windows import token_windows
from exporter.checkpoint import Checkpoint, find_checkpoint, load
from exporter.compression import compress
from exporter.gate import Subject, capacity_of, check_parity, explain_breach
from exporter.plan import DTYPES, Plan, make_plan, megabytes, refusal
from exporter.quality_gate import measure_quality, refuse_breach
from exporter.quality_report import QualityReport
from exporter.report import Report
from exporter.structure import (
    GraphError,
    WeightAccount,
    account_weights,
    attention_windows,
    check_graph,
)
from exporter.tokenization import special_tokens, write_tokenizer
from exporter.unrolling import trace_unrolled
from serving.bundle import (
    DType,
    EngineInfo,
    GraphInfo,
    LayerInfo,
    Manifest,
    ModelInfo,
    Target,
)
from serving.contract import CONTRACT_VERSION
from serving.errors import UserError

_TOOLS = ("export-llm", "torch", "transformers", "onnx", "onnxruntime", "tokenizers")


class Stages(Protocol):
    """Shows which stage runs."""

    def start(self, name: str) -> None:
        """A stage begins; the one before it is done."""


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
    batch: int = 1
    revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False
    bisect: bool = False
    pruning: Pruning = field(default_factory=Pruning)
    recipe: Recipe = field(default_factory=Recipe)
    calibration: Path | None = None
    """Text to calibrate with and to measure quality on; None stands for a default."""
    limits: QualityLimits = field(default_factory=QualityLimits)


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
    checkpoint = find_checkpoint(
        request.model, revision=request.revision, trust_remote_code=request.trust_remote_code
    )
    plan = make_plan(
        checkpoint,
        request.bundle,
        dtype=request.dtype,
        targets=request.targets,
        max_length=request.max_length,
        batch=request.batch,
        pruning=request.pruning,
        recipe=request.recipe,
    )
    return checkpoint, plan


def export(request: Request, stages: Stages) -> Plan:
    """Export a checkpoint to a checked bundle, or leave nothing behind.

    Raises UserError for whatever the user can mend and for a breach of the parity gate.
    """
    clock = Clock(stages)
    with clock.stage("Checking"):
        checkpoint, plan = plan_export(request)
    try:
        with reserved(request.bundle, force=request.force) as partial:
            _export_into(partial, request, checkpoint, plan, clock)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"The disk of {request.bundle} is full: make room for {megabytes(plan.disk)}."
        ) from error
    return plan


def _export_into(
    partial: Path, request: Request, checkpoint: Checkpoint, plan: Plan, clock: Clock
) -> None:
    windows = None
    if plan.is_compressed:
        with clock.stage("Reading text"):
            windows = token_windows(checkpoint, plan.max_length, request.calibration)
    with clock.stage("Tracing"):
        traced = _trace(checkpoint, plan)
    compression = None
    before: list[Subject] = []
    if windows is not None:
        with clock.stage("Compressing"):
            before = [_write_before(traced, partial / "before", plan)]
            with tempfile.TemporaryDirectory(dir=partial) as workspace:
                compression = compress(traced.model, plan, windows, Path(workspace))
    graph = _graph_info(traced, plan)
    with clock.stage("Writing"):
        try:
            engines, subjects = _build(traced.model, partial, graph, plan)
        except ValueError as error:  # a pass can't express this attention
            raise refusal(checkpoint, error) from error
        write_tokenizer(checkpoint.directory, partial)
    _release_weights(traced.source)  # they are on disk now; the engine maps them from there
    with clock.stage("Checking parity"):
        parity = check_parity(checkpoint, plan, before or subjects)
    if not parity.passed:
        checked = (before or subjects)[0]
        raise UserError(explain_breach(checkpoint, checked, parity, bisect=request.bisect))
    quality = None
    if windows is not None:
        with clock.stage("Measuring quality"):
            measured = measure_quality(
                checkpoint,
                subjects,
                windows.held_out,
                parameters=plan.parameters,
                scratch=partial,
            )
        refuse_breach(checkpoint, measured, request.limits)
        quality = QualityReport(measured, windows, request.limits)
    for subject in (*before, *subjects):
        if not subject.is_engine:
            shutil.rmtree(subject.directory)
    report = Report(
        plan, parity, traced.weights, traced.unused, engines, clock.seconds, compression, quality
    )
    report.write(partial)
    with clock.stage("Packing"):
        files = checksums(partial)
        manifest = Manifest(
            format_version=1,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            built_with={tool: importlib.metadata.version(tool) for tool in _TOOLS},
            model=ModelInfo(
                name=plan.model,
                architecture=plan.architecture,
                parameters=plan.parameters,
                weight_bytes=plan.weight_bytes,
                precision=plan.precision,
            ),
            graph=graph,
            engines=tuple(engines),
            tokens=special_tokens(checkpoint, graph.vocab_size),
            parity=parity.as_dict(),
            quality=quality.as_dict() if quality is not None else None,
            files=files,
        )
        commit(partial, request.bundle, manifest, force=request.force)


def _write_before(traced: TracedGraph, directory: Path, plan: Plan) -> Subject:
    """Write the graph as it is before it is made smaller, for the parity gate."""
    graph = _graph_info(traced, plan)
    model = traced.model.clone()
    onnxruntime_target.lower(model)
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return Subject(directory, graph, ())


def _trace(checkpoint: Checkpoint, plan: Plan) -> TracedGraph:
    loaded = load(checkpoint, DTYPES[plan.dtype])
    model = loaded.model
    try:
        graph = trace_unrolled(model, list(plan.cache))
        check_graph(graph, len(plan.layers), shared=len(plan.layers) < len(plan.cache))
        state = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
        weights = account_weights(graph, state)
    except (UntraceableError, GraphError) as error:
        raise refusal(checkpoint, error) from error
    optimize(graph)
    return TracedGraph(graph, model, weights, loaded.unused)


def _graph_info(traced: TracedGraph, plan: Plan) -> GraphInfo:
    """What the manifest says of the graph; pruning may have changed the layers."""
    graph = traced.model.graph
    pasts = [value for value in graph.inputs if (value.name or "").startswith("past_key_values.")]
    windows = attention_windows(traced.model, len(pasts) // 2)
    layers = (
        LayerInfo(
            kv_heads=static_size(key, 1),
            key_dim=static_size(key, 3),
            value_dim=static_size(value, 3),
            window=window,
        )
        for key, value, window in zip(pasts[::2], pasts[1::2], windows, strict=True)
    )
    return GraphInfo(
        contract_version=CONTRACT_VERSION,
        vocab_size=static_size(graph.outputs[0], 2),
        dtype=plan.dtype,
        quantized_cache="int8" if pasts[0].dtype == ir.DataType.INT8 else None,
        integer_weights=any(linear.dequantize for linear in find_linears(traced.model)),
        layers=tuple(layers),
        max_length=plan.max_length,
    )


def _build(
    model: ir.Model, partial: Path, graph: GraphInfo, plan: Plan
) -> tuple[list[EngineInfo], list[Subject]]:
    """Build every target's engine into ``partial``, and say what the gate has to run for them."""
    engines: list[EngineInfo] = []
    subjects: list[Subject] = []
    tensorrt = tuple(target for target in plan.targets if target != "onnxruntime")
    if tensorrt:
        subjects.append(_write_check_graph(model.clone(), partial / "check", graph, plan, tensorrt))
    for target in tensorrt:
        from engines.tensorrt.builder import build

        built = build(
            model.clone(), partial, target=target, max_length=plan.max_length, batch=plan.batch
        )
        engines.append(
            EngineInfo(
                target=target,
                file=built.name,
                weight_bytes=plan.engine_bytes,
                max_batch=plan.batch,
                max_sequence=plan.max_length,
                runtime_version=built.runtime_version,
                compute_capabilities=built.compute_capabilities,
            )
        )
    if "onnxruntime" in plan.targets:
        onnxruntime_target.lower(model)
        onnxruntime_target.write(model, partial)
        engines.insert(
            0,
            EngineInfo(
                target="onnxruntime",
                file=onnxruntime_target.MODEL_FILE,
                weight_bytes=(partial / onnxruntime_target.WEIGHTS_FILE).stat().st_size,
                runtime_version=importlib.metadata.version("onnxruntime"),
            ),
        )
        subjects.insert(0, Subject(partial, graph, ("onnxruntime",)))
    return engines, subjects


def _write_check_graph(
    model: ir.Model, directory: Path, graph: GraphInfo, plan: Plan, targets: tuple[Target, ...]
) -> Subject:
    """Write the graph as lowered for TensorRT, which is standard ONNX, for ONNX Runtime to run."""
    from engines.passes.float32_for_bfloat16 import widen_bfloat16
    from engines.tensorrt.lowering import lower

    lower(model, capacity_of(plan))
    if plan.dtype == "bfloat16":
        widen_bfloat16(model)
        graph = graph.model_copy(update={"dtype": "float32"})
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return Subject(directory, graph, targets)


def _release_weights(model: PreTrainedModel) -> None:
    """Empty the parameters: graphs that tools remember would keep the whole file mapped."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
