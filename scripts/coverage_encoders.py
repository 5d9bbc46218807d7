"""Try every masked-LM type that transformers registers, and write docs/coverage_encoders.md.

Each type gets a tiny config by general rules (see tiny_configs.py), random weights, and the
product's own path through the parity gate, once for fill-mask and once for embed. Results are kept
as one JSON line a type, so that only what is asked for runs again.

    python -m scripts.coverage_encoders                 run what has no result yet, write the table
    python -m scripts.coverage_encoders --failed        run again what failed
    python -m scripts.coverage_encoders --only bert,xlm run these again
"""

import argparse
import importlib.metadata
import json
import logging
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from exporter.encoders.export import EncoderRequest, export_encoder
from exporter.encoders.tasks import AUTO_CLASSES
from scripts.processes import run_each
from scripts.tiny_configs import tiny_config
from serving.encoders.contract import Task
from serving.errors import UserError
from tests.checkpoints import enliven

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "coverage_encoders.md"
RESULTS = ROOT / "build" / "coverage_encoders.jsonl"
TASKS: tuple[Task, ...] = ("fill-mask", "embed")
TIMEOUT = 240.0  # seconds a type

Status = Literal["exact", "refused", "failing"]
MEANINGS: dict[Status, str] = {
    "exact": "exported for both tasks, and gives the numbers of transformers in float32",
    "refused": "not exported: one sentence says why, before anything is written",
    "failing": "not exported: the trace or the parity gate stops it, for a reason yet to be mended",
}


@dataclass(frozen=True)
class Outcome:
    """How one type ended; ``max_error`` is the largest, as a share of an output's largest value."""

    model_type: str
    status: Status
    reason: str = ""
    max_error: float | None = None
    own_attention: bool = False


def try_type(model_type: str) -> Outcome:
    """Make a tiny checkpoint of a type, export it for each task, and say how that ended."""
    worst, own = 0.0, False
    for task in TASKS:
        with tempfile.TemporaryDirectory() as directory:
            checkpoint, bundle = Path(directory) / model_type, Path(directory) / "bundle"
            try:
                model = make_tiny(model_type, task, checkpoint)
            except Exception as error:  # whatever a config or a model's constructor raises
                return Outcome(model_type, "failing", f"no tiny checkpoint: {first_line(error)}")
            try:
                export_encoder(EncoderRequest(str(checkpoint), bundle, task), _Silent())
            except UserError as error:
                return _stopped(model_type, str(error).replace(f"{directory}/", ""))
            except Exception as error:  # a defect of ours
                where = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name
                reason = f"{type(error).__name__} in {where}: {first_line(error)}"
                return Outcome(model_type, "failing", reason)
            report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
            worst = max(worst, *(c["max_error"] for c in report["parity"]["comparisons"]))
            own = own or not model._can_set_attn_implementation()
    return Outcome(model_type, "exact", "", worst, own)


def _stopped(model_type: str, sentence: str) -> Outcome:
    """The outcome of an export that a UserError ended."""
    _, marker, cause = sentence.rstrip(".").partition("can't be exported: ")
    by_gate = "was not exported: " in sentence or "can't open the graph" in sentence
    status: Status = "failing" if by_gate or cause.startswith("tracing it fails") else "refused"
    return Outcome(model_type, status, cause if marker else sentence.rstrip("."))


def make_tiny(model_type: str, task: Task, directory: Path) -> PreTrainedModel:
    """Write a tiny checkpoint of ``model_type`` with the head of ``task``; returns its model."""
    torch.manual_seed(0)
    config = tiny_config(model_type, is_decoder=False)
    model: PreTrainedModel = AUTO_CLASSES[task].from_config(config, dtype=torch.float32)
    enliven(model)
    model.save_pretrained(directory)
    return model


class _Silent:
    def start(self, name: str) -> None:
        """Show nothing."""

    def progress(self, phase: str, done: float) -> None:
        """Show nothing."""


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:200]


def read_results() -> dict[str, Outcome]:
    """The newest result of each type."""
    if not RESULTS.is_file():
        return {}
    outcomes = [Outcome(**json.loads(line)) for line in RESULTS.read_text().splitlines()]
    return {outcome.model_type: outcome for outcome in outcomes}


def write_table(outcomes: Sequence[Outcome]) -> None:
    """Write the table of all types, with counts on top."""
    counts = Counter(outcome.status for outcome in outcomes)
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "transformers", "onnx", "onnxruntime")
    )
    lines = [
        "# Coverage of encoders",
        "",
        f"Every masked-LM type that transformers registers, {len(outcomes)} of them, each tried",
        "with a tiny config and random weights through export and parity gate, for two tasks.",
        "Written by `python -m scripts.coverage_encoders`; don't edit it by hand.",
        "",
        "| status | types | meaning |",
        "| --- | --- | --- |",
        *(f"| {status} | {counts[status]} | {meaning} |" for status, meaning in MEANINGS.items()),
        "",
        f"Made with {versions}. The gate runs texts of 2, 5 and 23 tokens and of as many as the",
        "tiny model has positions for, and three rows with padding on the right, on the left and",
        "in the middle. The error is the largest difference as a share of an output's largest",
        "value.",
        "",
        "| type | status | largest error | notes or the reason |",
        "| --- | --- | --- | --- |",
        *map(_row, outcomes),
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(outcome: Outcome) -> str:
    error = f"{outcome.max_error:.1e}" if outcome.max_error is not None else ""
    notes = "attention code of its own" if outcome.own_attention else outcome.reason
    return f"| `{outcome.model_type}` | {outcome.status} | {error} | {notes.replace('|', '/')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="these types, with commas between them")
    parser.add_argument("--failed", action="store_true", help="what isn't exact")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(1)
    registered = sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    known = read_results()
    types = [t for t in registered if t not in known]
    if arguments.failed:
        types = [t for t, outcome in known.items() if outcome.status != "exact"]
    if arguments.only:
        types = arguments.only.split(",")
    RESULTS.parent.mkdir(exist_ok=True)
    attempts = run_each(
        types,
        try_type,
        lambda model_type, reason: Outcome(model_type, "failing", reason),
        limit=TIMEOUT,
        jobs=arguments.jobs,
    )
    for _, outcome, seconds in attempts:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        print(
            f"{outcome.model_type:24} {outcome.status:8} {seconds:5.1f} s  {outcome.reason}",
            flush=True,
        )
    results = read_results()
    if missing := [t for t in registered if t not in results]:
        print(f"{TABLE.name} wasn't written: {len(missing)} types weren't tried yet")
        return
    write_table([results[t] for t in registered])


if __name__ == "__main__":
    main()
