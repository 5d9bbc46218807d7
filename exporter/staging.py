"""Exporting in stages: each is built as a whole model would be, in a directory of its own."""

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from engines.passes.pipeline_stages import Stage, split_into_stages
from engines.tensorrt.callbacks import Progress, show_nothing
from exporter.building import build_engines, write_exact
from exporter.gate import Subject
from exporter.plan import Plan
from serving.bundle import EngineInfo, GraphInfo, StageInfo
from serving.errors import UserError


def build_stages(
    model: ir.Model,
    partial: Path,
    graph: GraphInfo,
    plan: Plan,
    *,
    progress: Progress = show_nothing,
) -> tuple[list[EngineInfo], list[Subject]]:
    """Build every target's engine in ``plan.stages`` stages, as ``build_engines`` does in one.

    Raises UserError if the graph can't be split so.
    """
    try:
        stages = split_into_stages(model, plan.stages)
    except ValueError as error:
        raise UserError(f"--stages {plan.stages} isn't possible: {error}.") from error
    exact = None
    if plan.is_compressed and plan.dtype != "bfloat16":  # which ONNX Runtime can't run
        exact = write_exact(model, partial / "exact")
    built = []
    for number, stage in enumerate(stages):
        directory = partial / _directory(number)
        directory.mkdir()
        built.append(
            build_engines(
                stage.model, directory, graph, plan, progress=progress, writes_exact=False
            )
        )
    engines = [
        _joined_engine(parts, stages)
        for parts in zip(*(engines for engines, _ in built), strict=True)
    ]
    subjects = [
        _joined_subject(parts, partial, exact)
        for parts in zip(*(subjects for _, subjects in built), strict=True)
    ]
    return engines, subjects


def _directory(number: int) -> str:
    return f"stage-{number}"


def _joined_engine(engines: Sequence[EngineInfo], stages: Sequence[Stage]) -> EngineInfo:
    """One engine in stages, of each stage's own."""
    parts = tuple(
        StageInfo(
            file=f"{_directory(number)}/{engine.file}",
            first_layer=stage.layers.start,
            layers=len(stage.layers),
            weight_bytes=engine.weight_bytes
            if engine.target == "onnxruntime"
            else stage.weight_bytes,
        )
        for number, (engine, stage) in enumerate(zip(engines, stages, strict=True))
    )
    total = sum(part.weight_bytes for part in parts)
    update = {"file": parts[0].file, "weight_bytes": total, "stages": parts}
    return engines[0].model_copy(update=update)


def _joined_subject(subjects: Sequence[Subject], partial: Path, exact: Path | None) -> Subject:
    """The gates' subject for one engine in stages, of each stage's own."""
    first = subjects[0]
    stages = tuple(subject.directory for subject in subjects)
    weight_bytes = sum(subject.weight_bytes for subject in subjects)
    return Subject(partial, first.graph, first.targets, exact, stages, weight_bytes)
