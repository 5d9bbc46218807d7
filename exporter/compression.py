"""Making a traced graph smaller: pruning, then quantisation, with what calibration text shows."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.calibration import collect
from engines.pruning.pruning import PruningReport, prune
from engines.quantization.apply import QuantizationReport, quantize
from engines.quantization.weights import WeightScheme
from exporter.calibration_windows import TokenWindows
from exporter.plan import Plan


@dataclass(frozen=True)
class CompressionReport:
    """What was removed, and which weights got how many bits."""

    pruning: PruningReport | None = None
    quantization: QuantizationReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for report.json."""
        return asdict(self)


def compress(
    model: ir.Model, plan: Plan, windows: TokenWindows | None, workspace: Path
) -> CompressionReport:
    """Prune and quantise a standard graph with float weights in place, as the plan says.

    ``windows`` are needed where the plan's recipe needs text; ``workspace`` is an empty directory
    for graphs that run on it. Raises UserError for what this model can't have.
    """
    report = None
    if not plan.pruning.is_empty:
        statistics = None
        if windows is not None and plan.pruning.is_structural:
            statistics = collect(model, list(windows.calibration), workspace)
        report = prune(model, plan.pruning, statistics)
    quantization = None
    if not plan.recipe.is_empty:
        text = [] if windows is None else list(windows.calibration)
        quantization = quantize(model, plan.recipe, text, workspace)
    return CompressionReport(report, quantization)


def compression_markdown(report: CompressionReport) -> list[str]:
    """The lines of report.md, from the heading on."""
    lines = ["## Compression", ""]
    if report.pruning is not None:
        p = report.pruning
        lines += [
            f"{p.parameters_before:,} parameters became {p.parameters_after:,}, of which "
            f"{p.zeros:,} are zero.",
            "",
        ]
    if report.quantization is not None:
        counts = Counter(map(_describe, report.quantization.schemes.values()))
        lines += [f"- {count} weights: {scheme}" for scheme, count in sorted(counts.items())]
        smoothed = sum(choice.alpha is not None for choice in report.quantization.smoothing)
        if smoothed:
            lines += [f"- {smoothed} groups of layers smoothed"]
    return lines


def _describe(scheme: WeightScheme) -> str:
    groups = f"groups of {scheme.group_size}" if scheme.group_size else "one scale a row"
    return f"{scheme.bits} bits, {groups}{'' if scheme.symmetric else ', asymmetric'}"
