"""The outcome of trying a model type, and the table of all of them: docs/coverage.md."""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from scripts.coverage_engines import RECIPES

Status = Literal["exact", "refused", "failing"]
MEANINGS: dict[Status, str] = {
    "exact": "exported, and generates the tokens of transformers in float32",
    "refused": "not exported: one sentence says why, before anything is written",
    "failing": "not exported: the trace or the parity gate stops it, for a reason yet to be mended",
}


@dataclass(frozen=True)
class Outcome:
    """How one type ended.

    ``max_error`` is the largest difference of a logit as a share of the largest logit. ``engines``
    says of each precision of an exact type why it has no engine, or nothing if it has one.
    """

    model_type: str
    status: Status
    reason: str = ""
    max_error: float | None = None
    traits: tuple[str, ...] = ()
    engines: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> str:
        """Traits and reasons."""
        by_reason: dict[str, list[str]] = {}
        for precision, reason in self.engines.items():
            if reason:
                by_reason.setdefault(reason, []).append(precision.upper())
        refusals = [f"no {' or '.join(which)} engine: {why}" for why, which in by_reason.items()]
        return "; ".join(filter(None, [", ".join(self.traits), self.reason, *refusals]))

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
        for package in ("torch", "transformers", "onnx", "onnxruntime", "tensorrt-rtx-cu13")
    )
    exact = [outcome for outcome in outcomes if outcome.status == "exact"]
    lines = [
        "# Coverage",
        "",
        f"Every causal-LM type that transformers registers, {len(outcomes)} of them, each tried",
        "with a tiny config and random weights the whole way: export, parity gate, serving.",
        "Written by `python -m scripts.coverage`; don't edit it by hand. Encoder-decoders are in",
        "[encoder-decoders.md](encoder-decoders.md#coverage).",
        "",
        "| status | types | meaning |",
        "| --- | --- | --- |",
        *(f"| {status} | {counts[status]} | {meaning} |" for status, meaning in MEANINGS.items()),
        "",
        f"Made with {versions}. Exact is said of the `onnxruntime` target on the CPU. Windows are",
        "of 8 tokens, prompts of 9 to 23, and 64 tokens are decoded, so that windows matter. The",
        "error is the largest difference of a logit as a share of the largest logit.",
        "",
        "What is exact is also traced in float16 and built for `tensorrt-rtx`, as it is and with",
        "`--int8`. An engine is there if TensorRT takes the graph, the verifier finds the network",
        "to be what the graph says, and the builder has kernels for it; running it takes a GPU.",
        "",
        "| engine | built | refused |",
        "| --- | --- | --- |",
        *(_counted(precision, exact) for precision in RECIPES),
        "",
        f"| type | status | largest error | {' | '.join(map(str.upper, RECIPES))} "
        "| traits, notes or the reason |",
        f"| --- | --- | --- | {'--- | ' * len(RECIPES)}--- |",
        *map(_row, outcomes),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table_types(file: Path) -> dict[str, Status]:
    """The types of a written table, with their status."""
    rows = [line.split(" | ") for line in file.read_text(encoding="utf-8").splitlines()]
    return {row[0][3:-1]: row[1] for row in rows if row[0].startswith("| `")}  # type: ignore[misc]


def table_engines(file: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Of each type of a written table, what became of its engines, and the notes."""
    rows = [line.split(" | ") for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        row[0][3:-1]: (dict(zip(RECIPES, row[3:-1], strict=True)), row[-1].removesuffix(" |"))
        for row in rows
        if row[0].startswith("| `")
    }


def _counted(precision: str, exact: Sequence[Outcome]) -> str:
    counts = Counter(_engine(outcome, precision) for outcome in exact)
    return f"| {precision.upper()} | {counts['built']} | {counts['refused']} |"


def _engine(outcome: Outcome, precision: str) -> str:
    """One word, or none where nobody tried."""
    if precision not in outcome.engines:
        return ""
    return "refused" if outcome.engines[precision] else "built"


def _row(outcome: Outcome) -> str:
    error = f"{outcome.max_error:.1e}" if outcome.max_error is not None else ""
    engines = " | ".join(_engine(outcome, precision) for precision in RECIPES)
    notes = outcome.notes.replace("|", "/")
    return f"| `{outcome.model_type}` | {outcome.status} | {error} | {engines} | {notes} |"
