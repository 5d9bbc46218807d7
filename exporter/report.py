"""The bundle's report, for people (report.md) and for programs (report.json)."""

import json
from pathlib import Path
from typing import Any

from exporter.parity import ParityReport
from exporter.plan import Plan
from exporter.structure import WeightAccount
from serving.bundle import EngineInfo


def write_report(
    directory: Path,
    plan: Plan,
    parity: ParityReport,
    weights: WeightAccount,
    unused: tuple[str, ...],
    engines: list[EngineInfo],
    seconds: dict[str, float],
) -> None:
    """Write report.md and report.json into a bundle's directory."""
    data: dict[str, Any] = {
        "plan": plan.as_dict(),
        "engines": [engine.model_dump() for engine in engines],
        "parity": parity.as_dict(),
        "weights": {
            "used": len(weights.used),
            "unused_by_the_graph": weights.unused,
            "unused_in_the_checkpoint": unused,
        },
        "seconds": seconds,
    }
    (directory / "report.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(
        _markdown(plan, parity, weights, unused, engines, seconds), encoding="utf-8"
    )


def _markdown(
    plan: Plan,
    parity: ParityReport,
    weights: WeightAccount,
    unused: tuple[str, ...],
    engines: list[EngineInfo],
    seconds: dict[str, float],
) -> str:
    lines = [
        f"# {plan.model}",
        "",
        f"{plan.architecture}, {plan.parameters:,} parameters, {len(plan.layers)} layers with a "
        f"cache, {plan.dtype}, at most {plan.max_length:,} tokens.",
        "",
        "## Engines",
        "",
        "| target | file | weights | rows | length | built with |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {e.target} | {e.file} | {e.weight_bytes:,} bytes | {e.max_batch or 'any'} | "
        f"{e.max_sequence or 'any'} | {e.runtime_version} |"
        for e in engines
    ]
    lines += [
        "",
        "## Parity",
        "",
        f"**{parity.status}**: {parity.engine}, against {parity.reference}.",
    ]
    lines += [
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
    lines += ["", _greedy_line(parity), "", "## Weights", ""]
    lines.append(
        f"{len(weights.used)} of the model's tensors are in the graph, all from the checkpoint."
    )
    lines += _listing("In the model and not in the graph", weights.unused)
    lines += _listing(
        "In the checkpoint and not in the model, as the architecture declares", unused
    )
    lines += ["", "## Time", "", "| stage | seconds |", "| --- | --- |"]
    lines += [f"| {stage} | {value:.1f} |" for stage, value in seconds.items()]
    return "\n".join(lines) + "\n"


def _greedy_line(parity: ParityReport) -> str:
    if parity.divergence is None:
        return f"Greedy decoding chose the same {parity.greedy_tokens} tokens for every prompt."
    d = parity.divergence
    return (
        f"Greedy decoding first chose differently at token {d.position} of prompt {d.prompt}: "
        f"{d.engine_token} instead of {d.reference_token}, which the reference prefers by "
        f"{d.margin:.2g}."
    )


def _listing(title: str, names: tuple[str, ...]) -> list[str]:
    return ["", f"{title}:", "", *(f"- `{name}`" for name in names)] if names else []
