"""The section on quality, speed and size of a bundle's report."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engines.quality import QualityLimits
from exporter.calibration_windows import TokenWindows
from exporter.quality_gate import EngineQuality


def quality_data(
    measured: Sequence[EngineQuality], windows: TokenWindows, limits: QualityLimits
) -> dict[str, Any]:
    """What report.json says."""
    return {
        "text": windows.source,
        "windows": len(windows.held_out),
        "tokens_per_window": windows.held_out.shape[1],
        "limits": asdict(limits),
        "engines": [
            asdict(engine)
            | {"overall": engine.overall.as_dict(), "decode": engine.decode.as_dict()}
            for engine in measured
        ],
    }


def quality_markdown(
    measured: Sequence[EngineQuality], windows: TokenWindows, limits: QualityLimits
) -> list[str]:
    """The lines of report.md, from the heading on."""
    count, length = windows.held_out.shape
    lines = [
        "## Quality",
        "",
        f"Against the float32 checkpoint in transformers, on {count} windows of {length} tokens "
        f"that nothing was calibrated with: {windows.source}. KL divergence is that of the "
        "engine's next-token distribution from the checkpoint's, in nats. Decoded are the last "
        "tokens of each window, run one by one.",
        "",
        f"Allowed: mean KL {_limit(limits.max_kl, '.3g')}, perplexity increase "
        f"{_limit(limits.max_perplexity_increase, '.2%')}.",
        "",
        "| engine | positions | perplexity | of the checkpoint | increase | mean KL | 99% below | "
        "top-1 agreement |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for engine in measured:
        for name, q in ((engine.engine, engine.overall), ("decoded", engine.decode)):
            lines.append(
                f"| {name} | {q.tokens:,} | {q.perplexity:.4g} | {q.reference_perplexity:.4g} | "
                f"{q.perplexity_increase:+.2%} | {q.mean_kl:.2g} | {q.kl_99:.2g} | "
                f"{q.top1_agreement:.2%} |"
            )
    lines += [
        "",
        "Size and speed, the speed from this one run and not from a benchmark:",
        "",
        "| engine | weights | bits a weight | prefill, tokens/s | decode, tokens/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {e.engine} | {e.weight_bytes:,} bytes | {e.bits_per_weight:.2f} | "
        f"{e.prefill_tokens_per_second:,.1f} | {e.decode_tokens_per_second:,.1f} |"
        for e in measured
    ]
    return lines


def _limit(value: float | None, form: str) -> str:
    return "without limit" if value is None else f"at most {value:{form}}"
