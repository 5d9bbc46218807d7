"""Making a traced graph smaller: pruning, then quantisation, with what calibration text shows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from engines.calibration import collect
from engines.pruning.layers import measure_layers
from engines.pruning.plan import Pruning
from engines.pruning.pruning import PruningReport, prune
from engines.quantization.apply import QuantizationReport, quantize
from engines.quantization.float8 import Float8Scheme
from engines.quantization.weights import WeightScheme
from engines.standard import optimize
from exporter.calibration_windows import TokenWindows
from exporter.checkpoint import Checkpoint, packed_weights
from exporter.float16_range import keep_in_range
from exporter.packed_weights import pack_graph
from exporter.plan import Plan
from serving.engine import IntArray


@dataclass(frozen=True)
class CompressionReport:
    """What was removed, and which weights got how many bits."""

    packed: dict[str, WeightScheme | Float8Scheme] = field(default_factory=dict)
    """The weights that the checkpoint stores in few bits, by name."""
    pruning: PruningReport | None = None
    quantization: QuantizationReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for report.json."""
        return asdict(self)


def compress(
    model: ir.Model, checkpoint: Checkpoint, plan: Plan, windows: TokenWindows, scratch: Path
) -> tuple[CompressionReport, list[str]]:
    """Make a simplified graph with float weights smaller in place, as the plan says.

    ``scratch`` is a directory for graphs that run on the text meanwhile. Returns what was done and
    the nodes that leave float16's range, see ``keep_in_range``. Raises UserError for what this
    model can't have.
    """
    text = list(windows.calibration)
    packed = pack_graph(model, packed_weights(checkpoint))
    pruning = None
    if not plan.pruning.is_empty:
        pruning = _prune(model, plan.pruning, text, scratch)
    optimize(model, plan.adapted)
    islands: list[str] = []
    if plan.dtype == "float16":
        islands = keep_in_range(model, checkpoint.name, text, scratch)
    quantization = None
    if not plan.recipe.is_empty:
        quantization = quantize(model, plan.recipe, text, scratch)
    return CompressionReport(packed, pruning, quantization), islands


def _prune(
    model: ir.Model, pruning: Pruning, text: Sequence[IntArray], scratch: Path
) -> PruningReport:
    """Prune by what the text shows of structures; single weights go by their own magnitude."""
    statistics, layer_changes = None, None
    if pruning.heads is not None or pruning.channels is not None:
        with TemporaryDirectory(dir=scratch) as workspace:
            statistics = collect(model, text, Path(workspace))
    if pruning.layers:
        with TemporaryDirectory(dir=scratch) as workspace:
            layer_changes = measure_layers(model, text, Path(workspace))
    return prune(model, pruning, statistics, layer_changes)


def compression_markdown(report: CompressionReport) -> list[str]:
    """The lines of report.md, from the heading on."""
    lines = ["## Compression", ""]
    counts = Counter(map(_describe, report.packed.values()))
    lines += [
        f"- {count} weights as the checkpoint stores them: {scheme}"
        for scheme, count in sorted(counts.items())
    ]
    if report.pruning is not None:
        p = report.pruning
        lines += [
            f"- {p.parameters_before:,} parameters became {p.parameters_after:,}, of which "
            f"{p.zeros:,} are zero",
        ]
    if report.quantization is not None:
        counts = Counter(map(_describe, report.quantization.schemes.values()))
        lines += [f"- {count} weights: {scheme}" for scheme, count in sorted(counts.items())]
        smoothed = sum(choice.alpha is not None for choice in report.quantization.smoothing)
        if smoothed:
            lines += [f"- {smoothed} groups of layers smoothed"]
        lines += float_activations(report.quantization)
    return lines


def float_activations(report: QuantizationReport) -> list[str]:
    """The layers that quantising activations left float ones, as lines of report.md."""
    return [
        f"- float activations, of which integers would lose too much: {', '.join(choice.weights)}"
        for choice in report.smoothing
        if choice.is_float
    ]


def _describe(scheme: WeightScheme | Float8Scheme) -> str:
    if isinstance(scheme, Float8Scheme):
        scales = f"block of {scheme.block_size}" if scheme.block_size else scheme.scales
        activations = "float8 with a static scale" if scheme.activations else "floats"
        return f"float8, one scale a {scales}; their activations are {activations}"
    groups = f"groups of {scheme.group_size}" if scheme.group_size else "one scale a row"
    return f"{scheme.bits} bits, {groups}{'' if scheme.symmetric else ', asymmetric'}"
