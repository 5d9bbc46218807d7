"""Building TensorRT-RTX engines of a tiny checkpoint, and why one can't be built."""

from pathlib import Path

import torch

from engines.quantization.apply import quantize
from engines.quantization.recipe import Recipe
from engines.standard import simplify
from engines.tensorrt.builder import build
from exporter.calibration_windows import token_windows
from exporter.checkpoint import Checkpoint, load
from exporter.compression import compress
from exporter.export import Request, plan_export
from exporter.unrolling import trace_unrolled
from scripts.processes import run_each
from serving.bundle import Target
from serving.errors import UserError

# Precision -> what is quantised. Whatever isn't is float16.
RECIPES = {"fp16": Recipe(), "int8": Recipe(bits=8)}
TARGET: Target = "tensorrt-rtx"
BATCH = 3
LIMIT = 60.0  # seconds a build


def build_each(checkpoint: Path, directory: Path) -> dict[str, str]:
    """Trace a checkpoint in float16 and build an engine of each precision from that one trace.

    The way from trace to engine is the product's own, with all that the verifier checks. Engines
    go to folders in ``directory`` that are called after their precision. Returns for each of
    ``RECIPES`` the reason why there is no engine, or nothing where there is one.
    """
    request = Request(
        str(checkpoint), directory / "bundle", dtype="float16", targets=(TARGET,), batch=BATCH
    )
    found, plan = plan_export(request)
    windows = token_windows(found, plan.max_length, None)
    source = load(found, torch.float16).model  # owns the weights that the graph refers to
    graph = trace_unrolled(source, list(plan.cache))
    simplify(graph)
    try:
        compress(graph, found, plan, windows, directory)
    except UserError as error:
        return dict.fromkeys(RECIPES, _reason(error, found))

    def attempt(precision: str) -> str:
        folder = directory / precision
        folder.mkdir()
        try:
            quantize(graph, RECIPES[precision], list(windows.calibration), folder)
            build(graph, folder, target=TARGET, max_length=plan.max_length, batch=plan.batch)
        except (UserError, ValueError) as error:  # a pass can't express it
            return _reason(error, found)
        return ""

    # Each in a process, with a graph, of its own: TensorRT crashes on some.
    builds = run_each(RECIPES, attempt, lambda _, reason: f"building it, {reason}", limit=LIMIT)
    return {precision: reason for precision, reason, _ in builds}


def _reason(error: Exception, checkpoint: Checkpoint) -> str:
    """What was said, without the advice and the name of a checkpoint that nobody has."""
    said = " ".join(str(error).split()).split(": export ")[0].rstrip(".")
    return said.replace(f"{checkpoint.name} was not exported: ", "")
