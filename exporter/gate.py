"""Running the parity gate on everything that an export built."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from engines.lowering_check import LIMIT, exact_logits, lowering_error, source_error
from engines.onnxruntime import ENCODER_FILE, MODEL_FILE, WEIGHTS_FILE
from exporter.adapters import gate_tables, random_adapters
from exporter.bisect import first_differing_module
from exporter.calibration_windows import LENGTH
from exporter.checkpoint import Checkpoint, load
from exporter.embedding_parity import reference_embeddings
from exporter.parity import (
    EngineRun,
    Floats,
    Measure,
    ParityReport,
    compare,
    merged,
    random_prompts,
    random_sources,
    reference_logits,
    references,
    rounding_error,
    run_engine,
)
from exporter.plan import DTYPES, Plan
from exporter.tokenization import special_tokens
from exporter.versions import version_of
from serving.bundle import GraphInfo, Target
from serving.engine import IntArray, require_encoder
from serving.lora import AdapterTables
from serving.onnxruntime import OnnxRuntimeEngine
from serving.pipeline import PipelineEngine

CAPACITY = LENGTH  # tokens; what the quality gate uses, and more than this one
_LOWERING_TOKENS = 64
_MEASURES: tuple[Measure, ...] = (reference_logits, reference_embeddings)


@dataclass(frozen=True)
class Subject:
    """A graph in ONNX Runtime that stands for engines, or for none: what they are made from."""

    directory: Path
    graph: GraphInfo
    targets: tuple[Target, ...]
    exact: Path | None = None
    """Where the standard Q/DQ graph is that it was lowered from, if it is quantised."""
    stages: tuple[Path, ...] = ()
    """Where each stage is, if the graph is split."""
    engine_weight_bytes: int | None = None
    """Of the engines that it stands for, where its own weights are wider."""

    @property
    def parts(self) -> tuple[Path, ...]:
        """The directories of its graphs."""
        return self.stages or (self.directory,)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as engines have them."""
        if self.engine_weight_bytes is not None:
            return self.engine_weight_bytes
        files = [part / WEIGHTS_FILE for part in self.parts]
        if self.graph.source is not None:
            files.append(self.directory / f"{ENCODER_FILE}.data")
        return sum(file.stat().st_size for file in files)

    def open(
        self, *, slots: int, capacity: int, adapters: AdapterTables | None = None
    ) -> OnnxRuntimeEngine | PipelineEngine:
        """Open it as it is served, with LoRA adapters if it takes them."""
        engines = [
            OnnxRuntimeEngine(
                part / MODEL_FILE,
                self.graph,
                slots=slots,
                capacity=capacity,
                takes_turns=bool(self.stages),
                adapters=adapters,
                encoder=part / ENCODER_FILE if self.graph.source else None,
            )
            for part in self.parts
        ]
        return PipelineEngine(engines) if self.stages else engines[0]

    def remove(self) -> None:
        """Remove what was written for the gates only."""
        directories = () if self.is_engine else self.parts
        for directory in (self.exact, *directories):
            if directory is not None and directory.exists():
                shutil.rmtree(directory)

    @property
    def is_engine(self) -> bool:
        """Whether it is the very engine that will be served."""
        return self.targets == ("onnxruntime",)

    def describe(self) -> str:
        """Say what was run."""
        where = f"in ONNX Runtime {version_of('onnxruntime')} on the CPU"
        where = f"in {len(self.stages)} stages {where}" if self.stages else where
        if self.is_engine:
            return f"the engine {where}"
        if not self.targets:
            return f"the graph before pruning and quantisation, {where}"
        return (
            f"the graph that {' and '.join(self.targets)} was built from, {where} (the engine "
            "itself needs a GPU and was not run)"
        )


def capacity_of(plan: Plan) -> int:
    """KV capacity that the gate runs with."""
    return min(plan.max_length, CAPACITY)


def check_parity(checkpoint: Checkpoint, plan: Plan, subjects: Sequence[Subject]) -> ParityReport:
    """Run every subject, then compare each with transformers.

    The engines are closed before the reference is loaded, so that memory holds the weights once.
    """
    graph, capacity = subjects[0].graph, capacity_of(plan)
    prompts = random_prompts(graph.vocab_size, capacity)
    if graph.source is not None:
        runs = [_run_with_sources(checkpoint, subject, prompts, capacity) for subject in subjects]
    else:
        runs = [_run(subject, prompts, capacity) for subject in subjects]
    reports = [_compare(checkpoint, plan, subjects, runs)]
    if graph.lora:
        runs = [_run_with_adapters(subject, prompts, capacity) for subject in subjects]
        reports.append(_compare(checkpoint, plan, subjects, runs))
    return merged(reports, "with adapters")


def _run(subject: Subject, prompts: Sequence[Sequence[int]], capacity: int) -> list[EngineRun]:
    with subject.open(slots=len(prompts), capacity=capacity) as engine:
        return run_engine(engine, prompts, capacity)


def _run_with_sources(
    checkpoint: Checkpoint, subject: Subject, prompts: Sequence[Sequence[int]], capacity: int
) -> list[EngineRun]:
    """Run each prompt of a decoder with another source, and no padding among the tokens.

    A decoder that leaves padding out of its positions counts it in those of cached tokens, in
    transformers too.
    """
    assert subject.graph.source is not None
    vocab_size = subject.graph.vocab_size
    pad = special_tokens(checkpoint, vocab_size).pad
    if pad is not None:
        instead = (pad + 1) % vocab_size
        prompts = [[instead if token == pad else token for token in prompt] for prompt in prompts]
    sources = random_sources(vocab_size, subject.graph.source.max_length)
    with subject.open(slots=len(prompts), capacity=capacity) as engine:
        return run_engine(engine, prompts, capacity, sources, avoided=pad)


def _run_with_adapters(
    subject: Subject, prompts: Sequence[Sequence[int]], capacity: int
) -> list[EngineRun]:
    """Run each prompt with another random adapter, one of them with none, in one batch."""
    adapters = [None, *random_adapters(subject.graph)]
    tables = gate_tables(subject.graph)
    with subject.open(slots=len(prompts), capacity=capacity, adapters=tables) as engine:
        ids = [(slot + 1) % len(adapters) for slot in range(len(prompts))]
        engine.cache.adapter_ids[:] = ids
        runs = run_engine(engine, prompts, capacity)
    return [replace(run, adapter=adapters[id_]) for run, id_ in zip(runs, ids, strict=True)]


def _compare(
    checkpoint: Checkpoint,
    plan: Plan,
    subjects: Sequence[Subject],
    runs: Sequence[list[EngineRun]],
) -> ParityReport:
    """Compare what each subject did with transformers; all had the same prompts and adapters."""
    lower, share = None, 1.0
    if plan.dtype != "float32":
        lower = _measured(load(checkpoint, DTYPES[plan.dtype]).model, runs[0])
        if plan.dtype == "float16" and not all(np.isfinite(logits).all() for logits in lower[0]):
            # transformers has no float32 islands. bfloat16 has the range of float32, and 3 bits
            # fewer than float16.
            lower, share = _measured(load(checkpoint, torch.bfloat16).model, runs[0]), 1 / 8
    reference = load(checkpoint, torch.float32).model
    rounding: list[float | None] = [None] * len(_MEASURES)
    if lower is not None:
        exact = _measured(reference, runs[0])
        rounding = [share * rounding_error(*both) for both in zip(exact, lower, strict=True)]
    logits, embeddings = rounding
    return merged(
        [
            compare(
                run,
                reference,
                engine=subject.describe(),
                rounding=logits,
                embedding_rounding=embeddings,
            )
            for subject, run in zip(subjects, runs, strict=True)
        ]
    )


def _measured(model: PreTrainedModel, runs: Sequence[EngineRun]) -> list[list[Floats]]:
    """Logits and embeddings [positions, ...] of each prompt and its adapter by transformers."""
    return [references(measure, model, runs) for measure in _MEASURES]


def lowering_breach(subject: Subject, tokens: IntArray) -> str | None:
    """Say in a clause that a lowered engine isn't what its Q/DQ graph says, or None.

    ``tokens`` int64 [n] is a text of which the start is run.
    """
    if subject.exact is None:
        return None
    if subject.graph.source is not None:
        return _lowering_breach_of_pair(subject, subject.exact, tokens)
    start = tokens[:_LOWERING_TOKENS].tolist()
    adapters = gate_tables(subject.graph)
    breach = None
    for adapter_id in (0, 1) if adapters else (0,):
        exact = exact_logits(
            subject.exact / MODEL_FILE,
            start,
            capacity=len(start),
            adapters=adapters,
            adapter_id=adapter_id,
        )
        with subject.open(slots=1, capacity=len(tokens), adapters=adapters) as engine:
            engine.cache.adapter_ids[0] = adapter_id
            breach = breach or lowering_error(engine, start, exact).breach()
    return breach


def _lowering_breach_of_pair(subject: Subject, exact: Path, tokens: IntArray) -> str | None:
    """``lowering_breach`` of an encoder-decoder: the text's halves are source and output."""
    source, start = (half[:_LOWERING_TOKENS] for half in np.array_split(tokens, 2))
    with subject.open(slots=1, capacity=len(start)) as engine:
        require_encoder(engine).encode([source], 0)
        kept = engine.cache.source
        assert kept is not None
        error = source_error(exact / ENCODER_FILE, source, kept)
        if not error <= LIMIT:
            return (
                f"what the lowered encoder gives is {error:.1%} off what the quantised graph does "
                f"({LIMIT:.0%} allowed)"
            )
        logits = exact_logits(exact / MODEL_FILE, start.tolist(), capacity=len(start), source=kept)
        return lowering_error(engine, start.tolist(), logits).breach()


def explain_breach(
    checkpoint: Checkpoint, subject: Subject, parity: ParityReport, *, bisect: bool
) -> str:
    """The sentence for an export that the gate stops."""
    text = f"{checkpoint.name} was not exported: {parity.reason()}"
    if not bisect:
        how = "--bisect and without --stages" if subject.stages else "--bisect"
        return f"{text}; run again with {how} to see in which module."
    module = first_differing_module(
        subject.directory / MODEL_FILE,
        subject.graph,
        load(checkpoint, torch.float32).model,
        tolerance=parity.tolerance_max / parity.largest_logit,
    )
    if module is None:
        return (
            f"{text}; no module's output differs by itself, so the head or the cache is to blame."
        )
    return f"{text}; the first module whose output differs is {module}."
