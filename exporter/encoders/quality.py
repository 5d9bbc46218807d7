"""What a quantised encoder loses against the float32 checkpoint, on text that it hasn't seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.calibration_windows import Tokens
from exporter.encoders.parity import Floats, Inputs
from serving.contract import ATTENTION_MASK, INPUT_IDS, LOGITS_POSITIONS
from serving.encoders.contract import TOKEN_TYPE_IDS, Task

LOWEST_COSINE = 0.99
"""Of embeddings, on average; those of unrelated sentences have about 0 to 0.3."""
LOWEST_AGREEMENT = 0.9
"""Share of the most likely label, token or place that stays the most likely."""


@dataclass(frozen=True)
class EncoderQuality:
    """Agreement over ``texts`` texts.

    ``mean_cosine`` and ``lowest_cosine`` are between embeddings, ``agreement`` is the share of rows
    of logits whose largest is the same; what a task doesn't have is None.
    """

    engine: str
    texts: int
    mean_cosine: float | None
    lowest_cosine: float | None
    agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and report.json."""
        return asdict(self)

    def breach(self) -> str | None:
        """Say in a clause what is lost too much, or None. What can't be compared is a breach."""
        if self.mean_cosine is not None and not self.mean_cosine >= LOWEST_COSINE:
            return (
                f"embeddings have a cosine of {self.mean_cosine:.4f} with the checkpoint's on "
                f"average ({LOWEST_COSINE} needed)"
            )
        if self.agreement is not None and not self.agreement >= LOWEST_AGREEMENT:
            return (
                f"only {self.agreement:.1%} of the choices are the checkpoint's "
                f"({LOWEST_AGREEMENT:.0%} needed)"
            )
        return None

    def markdown(self) -> str:
        """A line of report.md."""
        if self.mean_cosine is not None:
            return (
                f"{self.engine}: cosine with the checkpoint's embeddings {self.mean_cosine:.5f} on "
                f"average, {self.lowest_cosine:.5f} at least, over {self.texts} texts."
            )
        return f"{self.engine}: {self.agreement:.2%} of the choices over {self.texts} texts."


def text_inputs(tokens: Tokens, names: Sequence[str]) -> Inputs:
    """The inputs of these names for one text alone, with logits at every position."""
    row = tokens[None]
    given = {
        INPUT_IDS: row,
        ATTENTION_MASK: np.ones_like(row),
        TOKEN_TYPE_IDS: np.zeros_like(row),
        LOGITS_POSITIONS: np.arange(row.shape[1])[None],
    }
    return {name: given[name] for name in names}


def measure(
    ours: Sequence[Sequence[Floats]],
    theirs: Sequence[Sequence[Floats]],
    task: Task,
    *,
    engine: str,
) -> EncoderQuality:
    """Compare the outputs of each text."""
    if task == "embed":
        pairs = [(own[0][0], right[0][0]) for own, right in zip(ours, theirs, strict=True)]
        cosines = np.array([_cosine(own, right) for own, right in pairs])
        return EncoderQuality(engine, len(pairs), float(cosines.mean()), float(cosines.min()), None)
    same = [
        own.argmax(axis=-1).ravel() == right.argmax(axis=-1).ravel()
        for each, other in zip(ours, theirs, strict=True)
        for own, right in zip(each, other, strict=True)
    ]
    finite = all(np.isfinite(array).all() for arrays in ours for array in arrays)
    share = float(np.concatenate(same).mean()) if finite else float("nan")
    return EncoderQuality(engine, len(ours), None, None, share)


def _cosine(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    wide = one.astype(np.float64), other.astype(np.float64)
    return float(wide[0] @ wide[1] / (np.linalg.norm(wide[0]) * np.linalg.norm(wide[1])))
