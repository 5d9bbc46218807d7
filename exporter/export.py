"""The whole way: checkpoint to graph to engines to a checked bundle."""

import errno
import importlib.metadata
import shutil
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
from engines.packing import checksums, commit, reserved
from engines.passes.sizes import static_size
from exporter.attention import UntraceableError
from exporter.checkpoint import Checkpoint, find_checkpoint, load
from exporter.gate import Subject, capacity_of, check_parity, explain_breach
from exporter.plan import DTYPES, Plan, make_plan, megabytes, refusal
from exporter.report import write_report
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


@dataclass(frozen=True)
class TracedGraph:
    """The standard graph and what was learnt on the way to it."""

    model: ir.Model
    source: PreTrainedModel
    """The model whose weights the graph refers to, needed until they are written."""
    layers: tuple[LayerInfo, ...]
    vocab_size: int
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
    with clock.stage("Tracing"):
        traced = _trace(checkpoint, plan)
    graph = GraphInfo(
        contract_version=CONTRACT_VERSION,
        vocab_size=traced.vocab_size,
        dtype=plan.dtype,
        layers=traced.layers,
        max_length=plan.max_length,
    )
    with clock.stage("Writing"):
        try:
            engines, subjects = _build(traced.model, partial, graph, plan)
        except ValueError as error:  # a pass can't express this attention
            raise refusal(checkpoint, error) from error
        write_tokenizer(checkpoint.directory, partial)
    _release_weights(traced.source)  # they are on disk now; the engine maps them from there
    with clock.stage("Checking parity"):
        parity = check_parity(checkpoint, plan, subjects)
    if not parity.passed:
        raise UserError(explain_breach(checkpoint, subjects, parity, bisect=request.bisect))
    for subject in subjects:
        if not subject.is_engine:
            shutil.rmtree(subject.directory)
    write_report(partial, plan, parity, traced.weights, traced.unused, engines, clock.seconds)
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
            ),
            graph=graph,
            engines=tuple(engines),
            tokens=special_tokens(checkpoint, graph.vocab_size),
            parity=parity.as_dict(),
            files=files,
        )
        commit(partial, request.bundle, manifest, force=request.force)


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
    windows = attention_windows(graph, len(plan.layers))
    return TracedGraph(
        graph,
        model,
        tuple(
            LayerInfo(kv_heads=c.kv_heads, key_dim=c.key_dim, value_dim=c.value_dim, window=window)
            for c, window in zip(plan.layers, windows, strict=True)
        ),
        static_size(graph.graph.outputs[0], 2),
        weights,
        loaded.unused,
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
                weight_bytes=plan.weight_bytes,
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
