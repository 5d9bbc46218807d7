"""What the quality gate found: the section on quality, size and speed of a bundle's report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engines.quality import Quality, QualityLimits, breach
from exporter.calibration_windows import TokenWindows


@dataclass(frozen=True)
class EngineQuality:
    """What one engine loses and how fast it was meanwhile.

    ``overall`` is over all positions and ``decode`` over those run one by one. ``weight_bytes`` is
    the size of the weights' file. Tokens per second are of this run, single and unrepeated.
    """

    engine: str
    overall: Quality
    decode: Quality
    weight_bytes: int
    bits_per_weight: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float

    def breach(self, limits: QualityLimits) -> str | None:
        """Say in a clause what is breached, or None.

        Decoding by itself is held to the KL limit only: perplexity over so few tokens is noise.
        """
        if said := breach(self.overall, limits):
            return said
        said = breach(self.decode, QualityLimits(max_kl=limits.max_kl))
        return f"when tokens are decoded one by one, {said}" if said else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for report.json."""
        parts = {"overall": self.overall.as_dict(), "decode": self.decode.as_dict()}
        return asdict(self) | parts


@dataclass(frozen=True)
class QualityReport:
    """What the quality gate measured, on which text, and what was allowed."""

    measured: Sequence[EngineQuality]
    windows: TokenWindows
    limits: QualityLimits

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and report.json."""
        return {
            "text": self.windows.source,
            "windows": self.windows.held_out.shape[0],
            "tokens_per_window": self.windows.held_out.shape[1],
            "limits": asdict(self.limits),
            "engines": [engine.as_dict() for engine in self.measured],
        }

    def markdown(self) -> list[str]:
        """The lines of report.md, from the heading on."""
        limits = self.limits
        count, length = self.windows.held_out.shape
        lines = [
            "## Quality",
            "",
            f"Against the float32 checkpoint in transformers, on {count} windows of {length} "
            f"tokens that nothing was calibrated with, from {self.windows.source}. KL is the "
            "divergence of the engine's next-token distribution from the checkpoint's, in nats. "
            "Decoded are the last tokens of each window, run one by one.",
            "",
            f"Allowed: mean KL {_limit(limits.max_kl, '.3g')}, perplexity increase "
            f"{_limit(limits.max_perplexity_increase, '.2%')}.",
            "",
            "| engine | positions | checkpoint's perplexity | perplexity | increase | mean KL | "
            "99th percentile of KL | top-1 agreement |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for engine in self.measured:
            lines.append(_row(engine.engine, engine.overall))
            lines.append(_row("the same, decoded", engine.decode))
        lines += [
            "",
            "Size, and speed in this one run, which is no benchmark:",
            "",
            "| engine | weights | bits a weight | prefill, tokens/s | decode, tokens/s |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {e.engine} | {e.weight_bytes:,} bytes | {e.bits_per_weight:.2f} | "
            f"{e.prefill_tokens_per_second:,.1f} | {e.decode_tokens_per_second:,.1f} |"
            for e in self.measured
        ]
        return lines


def _row(name: str, q: Quality) -> str:
    return (
        f"| {name} | {q.tokens:,} | {q.reference_perplexity:.4g} | {q.perplexity:.4g} | "
        f"{q.perplexity_increase:+.2%} | {q.mean_kl:.2g} | {q.kl_99:.2g} | {q.top1_agreement:.2%} |"
    )


def _limit(value: float | None, form: str) -> str:
    return "any" if value is None else f"{value:{form}}"
