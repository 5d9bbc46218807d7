"""Keeping both graphs of an encoder-decoder within float16's range, by what text shows.

The first half of each text is the source, the second half is what the decoder reads, as in the
quality gate.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from engines.calibration import Floats, SourceWindow, observe
from engines.passes.widened_floats import widen_floats
from exporter.calibration_windows import Tokens
from exporter.encoder_decoder.building import TracedPair
from exporter.float16_range import WINDOWS, keep_in_range


def keep_pair_in_range(
    traced: TracedPair, name: str, text: Sequence[Tokens], longest_source: int, scratch: Path
) -> list[str]:
    """Compute in float32 what leaves float16's range on the text, in place.

    Both graphs are optimised; ``text`` are windows of tokens, int64 [n]. Returns and raises as
    ``keep_in_range``.
    """
    halves = [(row[: len(row) // 2][:longest_source], row[len(row) // 2 :]) for row in text]
    sources = [source for source, _ in halves]
    islands = keep_in_range(traced.encoder, name, sources, scratch)
    encoded = _encode(traced.encoder, sources[:WINDOWS], scratch)
    windows = [
        SourceWindow(tokens, source) for (_, tokens), source in zip(halves, encoded, strict=False)
    ]
    return islands + keep_in_range(traced.decoder, name, windows, scratch)


def _encode(encoder: ir.Model, sources: Sequence[Tokens], scratch: Path) -> list[dict[str, Floats]]:
    """Every layer's keys and values of each source, in float32."""
    wide = encoder.clone()
    widen_floats(wide, ir.DataType.FLOAT16)
    with TemporaryDirectory(dir=scratch) as workspace:
        return list(observe(wide, list(wide.graph.outputs), sources, Path(workspace)))
