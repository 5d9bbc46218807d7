"""``--strip-weights``: bundles whose engines get their weights where they are deployed."""

from collections.abc import Sequence
from pathlib import Path

from engines.stripping import strip
from exporter.checkpoint import Checkpoint
from exporter.plan import Plan
from serving.bundle import EngineInfo
from serving.errors import UserError


def refuse_stripping(plan: Plan) -> None:
    """Raise UserError where an engine's weights won't be the checkpoint's."""
    if "onnxruntime" in plan.targets:
        raise UserError(
            "--strip-weights is for TensorRT engines, and ONNX Runtime's has its weights beside "
            "it: use --target tensorrt-rtx or tensorrt alone."
        )
    if plan.stages > 1 or plan.tensor_parallel > 1:
        raise UserError(
            "--strip-weights takes engines in one piece only: leave out --stages and "
            "--tensor-parallel, or --strip-weights."
        )
    if plan.dtype == "float32":
        raise UserError(
            "--strip-weights needs weights that are in the engine as in the checkpoint, and "
            "TensorRT scales those of float32 queries: add --fp16 or --bf16."
        )
    if plan.packing or plan.recipe.bits is not None or not plan.pruning.is_empty:
        raise UserError(
            "--strip-weights leaves out what the checkpoint has, and quantised or pruned weights "
            "are not in it: leave out --strip-weights, or what changes the weights."
        )


def strip_engines(
    engines: Sequence[EngineInfo], directory: Path, checkpoint: Checkpoint, plan: Plan
) -> list[EngineInfo]:
    """Strip every engine in ``directory``; return what the manifest says of them then."""
    stripped = []
    for engine in engines:
        file, whole = strip(directory / engine.file, checkpoint.directory, plan.dtype)
        stripped.append(engine.model_copy(update={"file": file.name, "stripped_from": whole}))
    return stripped
