"""The outcome of trying a model type, and the table of all of them: docs/coverage.md."""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["exact", "refused", "failing"]
MEANINGS: dict[Status, str] = {
    "exact": "exported, and generates the tokens of transformers in float32",
    "refused": "not exported: one sentence says why, before anything is written",
    "failing": "not exported: the trace or the parity gate stops it, for a reason yet to be mended",
}


@dataclass(frozen=True)
class Outcome:
    """How one type ended.

    ``max_error`` is the largest difference of a logit as a share of the largest logit.
    """

    model_type: str
    status: Status
    reason: str = ""
    max_error: float | None = None
    traits: tuple[str, ...] = ()

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Outcome":
        """The outcome that ``as_json`` wrote."""
        values = json.loads(line)
        return cls(**(values | {"traits": tuple(values["traits"])}))


def write_table(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the table of all types, with counts on top."""
    counts = Counter(outcome.status for outcome in outcomes)
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "transformers", "onnx", "onnxruntime")
    )
    lines = [
        "# Coverage",
        "",
        f"Every causal-LM type that transformers registers, {len(outcomes)} of them, each tried",
        "with a tiny config and random weights the whole way: export, parity gate, serving.",
        "Written by `python -m scripts.coverage`; don't edit it by hand.",
        "",
        "| status | types | meaning |",
        "| --- | --- | --- |",
        *(f"| {status} | {counts[status]} | {meaning} |" for status, meaning in MEANINGS.items()),
        "",
        f"Made with {versions}, for the `onnxruntime` target on the CPU. Windows are of 8 tokens,",
        "prompts of 9 to 23, and 64 tokens are decoded, so that windows matter. The error is the",
        "largest difference of a logit as a share of the largest logit.",
        "",
        "| type | status | largest error | traits, notes or the reason |",
        "| --- | --- | --- | --- |",
        *map(_row, outcomes),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table_types(file: Path) -> dict[str, Status]:
    """The types of a written table, with their status."""
    rows = [line.split(" | ") for line in file.read_text(encoding="utf-8").splitlines()]
    return {row[0][3:-1]: row[1] for row in rows if row[0].startswith("| `")}  # type: ignore[misc]


def _row(outcome: Outcome) -> str:
    error = f"{outcome.max_error:.1e}" if outcome.max_error is not None else ""
    notes = "; ".join(filter(None, [", ".join(outcome.traits), outcome.reason]))
    return f"| `{outcome.model_type}` | {outcome.status} | {error} | {notes.replace('|', '/')} |"
