"""The bundle's report, for people (report.md) and for programs (report.json)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.adapters import adapters_markdown
from exporter.compression import CompressionReport, compression_markdown
from exporter.float16_range import range_markdown
from exporter.parity import ParityReport
from exporter.plan import Plan
from exporter.quality_report import QualityReport
from exporter.structure import WeightAccount
from serving.bundle import EngineInfo, GraphInfo


@dataclass(frozen=True)
class Report:
    """All that is known of an export."""

    plan: Plan
    graph: GraphInfo
    parity: ParityReport
    weights: WeightAccount
    unused: tuple[str, ...]
    engines: list[EngineInfo]
    seconds: dict[str, float]
    islands: list[str] | None
    """The nodes that leave float16's range, by name; None for another type."""
    compression: CompressionReport | None
    quality: QualityReport | None

    def write(self, directory: Path) -> None:
        """Write report.md and report.json into a bundle's directory."""
        text = json.dumps(self._data(), indent=2)
        (directory / "report.json").write_text(f"{text}\n", encoding="utf-8")
        lines = self._markdown()
        (directory / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _data(self) -> dict[str, Any]:
        return {
            "plan": self.plan.as_dict(),
            "engines": [engine.model_dump() for engine in self.engines],
            "parity": self.parity.as_dict(),
            "float32_islands": self.islands,
            "compression": self.compression.as_dict() if self.compression else None,
            "quality": self.quality.as_dict() if self.quality else None,
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
            f"{plan.architecture}, {plan.parameters:,} parameters, {len(plan.layers)} layers with "
            f"a cache, {plan.precision}, at most {plan.max_length:,} tokens.",
            "",
            "## Engines",
            "",
            "| target | file | weights | rows | length | built with |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {_engine_name(e)} | {e.file} | {e.weight_bytes:,} bytes | {e.max_batch or 'any'} | "
            f"{e.max_sequence or 'any'} | {e.runtime_version} |"
            for e in self.engines
        ]
        for engine in self.engines:
            lines += _stage_lines(engine)
        lines += ["", *_parity_lines(self.parity)]
        if self.graph.lora:
            lines += ["", *adapters_markdown(self.graph.lora)]
        if self.islands is not None:
            lines += ["", *range_markdown(self.islands)]
        if self.compression is not None:
            lines += ["", *compression_markdown(self.compression)]
        if self.quality is not None:
            lines += ["", *self.quality.markdown()]
        lines += [
            "",
            "## Weights",
            "",
            f"{len(self.weights.used)} of the model's tensors are in the graph, all from the "
            "checkpoint.",
        ]
        lines += listing("In the model and not in the graph", self.weights.unused)
        lines += listing(
            "In the checkpoint and not in the model, as the architecture declares", self.unused
        )
        lines += ["", "## Time", "", "| stage | seconds |", "| --- | --- |"]
        lines += [f"| {stage} | {value:.1f} |" for stage, value in self.seconds.items()]
        return lines


def _engine_name(engine: EngineInfo) -> str:
    part = f", rank {engine.rank} of {engine.ranks}" if engine.ranks > 1 else ""
    return f"{engine.target}{part}"


def _stage_lines(engine: EngineInfo) -> list[str]:
    """How an engine's layers and weights are split; nothing if they aren't."""
    if not engine.stages:
        return []
    return [
        "",
        f"The stages of {engine.target}, which run one after the other:",
        "",
        "| file | layers | weights |",
        "| --- | --- | --- |",
        *(f"| {s.file} | {s.layer_range} | {s.weight_bytes:,} bytes |" for s in engine.stages),
    ]


def _parity_lines(parity: ParityReport) -> list[str]:
    lines = [
        "## Parity",
        "",
        f"**{parity.status}**: {parity.engine}, against {parity.reference}.",
        "",
        f"Allowed: {parity.tolerance_max:.2g} at most, {parity.tolerance_mean:.2g} on average; the "
        f"largest logit is {parity.largest_logit:.3g}.",
        "",
        "| check | positions | max error | mean error | top-1 agreement |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {c.name} | {c.positions} | {c.max_error:.2g} | {c.mean_error:.2g} | "
        f"{c.top1_agreement:.2%} |"
        for c in parity.comparisons
    ]
    lines += ["", _greedy_line(parity)]
    if (e := parity.embeddings) is not None:
        lines += [
            "",
            f"Embeddings differ by {e.max_error:.2g} at most ({e.tolerance_max:.2g} allowed) and "
            f"by {e.mean_error:.2g} on average ({e.tolerance_mean:.2g}) over {e.positions} "
            f"positions; the largest value is {e.largest:.3g}.",
        ]
    return lines


def _greedy_line(parity: ParityReport) -> str:
    if parity.divergence is None:
        return f"Greedy decoding chose the same {parity.greedy_tokens} tokens for every prompt."
    d = parity.divergence
    return (
        f"Greedy decoding first chose differently at token {d.position} of prompt {d.prompt}: "
        f"{d.engine_token} instead of {d.reference_token}, which the reference prefers by "
        f"{d.margin:.2g}."
    )


def listing(title: str, names: tuple[str, ...]) -> list[str]:
    """Lines of markdown with a name each; none where there are no names."""
    return ["", f"{title}:", "", *(f"- `{name}`" for name in names)] if names else []
