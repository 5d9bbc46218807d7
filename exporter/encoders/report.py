"""The report of an encoder's bundle, for people (report.md) and for programs (report.json)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.quantization.apply import QuantizationReport
from exporter.compression import float_activations
from exporter.encoders.parity import EncoderParity
from exporter.encoders.plan import EncoderPlan
from exporter.encoders.quality import EncoderQuality
from exporter.float16_range import range_markdown
from exporter.report import listing
from exporter.structure import WeightAccount
from serving.bundle import EngineInfo


@dataclass(frozen=True)
class EncoderReport:
    """All that is known of an export."""

    plan: EncoderPlan
    parity: EncoderParity
    weights: WeightAccount
    unused: tuple[str, ...]
    engines: list[EngineInfo]
    seconds: dict[str, float]
    islands: list[str] | None
    """The nodes that leave float16's range, by name; None for another type."""
    quantization: QuantizationReport
    quality: list[EncoderQuality]
    """What each quantised engine loses."""

    def write(self, directory: Path) -> None:
        """Write report.md and report.json into a bundle's directory."""
        text = json.dumps(self._data(), indent=2)
        (directory / "report.json").write_text(f"{text}\n", encoding="utf-8")
        text = "\n".join(self._markdown())
        (directory / "report.md").write_text(f"{text}\n", encoding="utf-8")

    def _data(self) -> dict[str, Any]:
        return {
            "plan": self.plan.as_dict(),
            "engines": [engine.model_dump() for engine in self.engines],
            "parity": self.parity.as_dict(),
            "float32_islands": self.islands,
            "quality": [quality.as_dict() for quality in self.quality],
            "weights": {
                "used": len(self.weights.used),
                "unused_by_the_graph": self.weights.unused,
                "unused_in_the_checkpoint": self.unused,
            },
            "seconds": self.seconds,
        }

    def _markdown(self) -> list[str]:
        plan = self.plan
        lines = [
            f"# {plan.model}",
            "",
            *(f"- {name}: {value}" for name, value in plan.rows() if name != "disk"),
            "",
            "## Engines",
            "",
            "| target | file | weights | rows | length | built with |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {e.target} | {e.file} | {e.weight_bytes:,} bytes | {e.max_batch or 'any'} | "
            f"{e.max_sequence or 'any'} | {e.runtime_version} |"
            for e in self.engines
        ]
        lines += ["", *_parity_lines(self.parity)]
        if self.islands is not None:
            lines += ["", *range_markdown(self.islands)]
        if self.quality:
            lines += ["", "## Quality", "", *(quality.markdown() for quality in self.quality)]
        if left := float_activations(self.quantization):
            lines += ["", "## Quantisation", "", *left]
        lines += [
            "",
            "## Weights",
            "",
            f"{len(self.weights.used)} of the model's tensors are in the graph, all from the "
            "checkpoint.",
        ]
        lines += listing("In the model and not in the graph", self.weights.unused)
        lines += listing("In the checkpoint and of no use for this task", self.unused)
        lines += ["", "## Time", "", "| stage | seconds |", "| --- | --- |"]
        lines += [f"| {stage} | {value:.1f} |" for stage, value in self.seconds.items()]
        return lines


def _parity_lines(parity: EncoderParity) -> list[str]:
    values = ", ".join(f"{name} {value:.3g}" for name, value in parity.largest_values.items())
    lines = [
        "## Parity",
        "",
        f"**{parity.status}**: {parity.engine}, against {parity.reference}.",
        "",
        "Errors are shares of an output's largest value. Allowed: "
        f"{parity.tolerance_max:.2g} at most, {parity.tolerance_mean:.2g} on average; the largest "
        f"values are {values}.",
        "",
        "| batch | values | max error | mean error |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {c.name} | {c.values:,} | {c.max_error:.2g} | {c.mean_error:.2g} |"
        for c in parity.comparisons
    ]
    return lines
