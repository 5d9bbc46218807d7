"""Embedding throughput of bundles beside other engines, interleaved, as medians and ratios.

    scripts/bench_encoders CHECKPOINT BUNDLE... [--onnx MODEL] [--processor-time] [--json FILE]

Every contestant gives the pooled vectors of the same batches of token ids, with no padding. Each
round runs all of them, in an order that is drawn anew. Contestants are transformers (eager and
SDPA), the bundles and, over the ONNX file that optimum or another exporter made of the checkpoint
(--onnx), ONNX Runtime with the sessions of optimum-onnx (which sentence-transformers' ONNX backend
uses) and of fastembed, and OpenVINO as sentence-transformers compiles it. What isn't installed is
left out. On a machine that does other work too, --processor-time measures one thread's time.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Inputs = dict[str, npt.NDArray[np.int64]]
Contestant = Callable[[Inputs], Floats]

SEQUENCES, BATCHES = (16, 128, 512), (1, 8, 32)
TOKENS = 12_000  # of all runs of a contestant at one size, about
FEWEST, MOST = 3, 41  # runs


def bundle_contestant(path: Path, threads: int) -> Contestant:
    """A bundle's engine, as EncoderModel runs it."""
    import serving

    model = serving.load_encoder(path, threads=threads)
    names = model.engine.input_names

    def run(inputs: Inputs) -> Floats:
        return model.engine.run({name: inputs[name] for name in names}, ("embeddings",))[0]

    return run


def transformers_contestant(checkpoint: Path, attention: str) -> Contestant:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint, attn_implementation=attention).eval()

    def run(inputs: Inputs) -> Floats:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            return mean(model(**tensors).last_hidden_state.numpy())

    return run


def onnxruntime_contestant(model: Path, threads: int, *, fastembed: bool) -> Contestant:
    """ONNX Runtime over another exporter's graph.

    optimum-onnx leaves the session's options at their defaults; fastembed asks for all
    optimisations, which is the default too, and sets both numbers of threads.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if fastembed:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.inter_op_num_threads = threads
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Inputs) -> Floats:
        return mean(session.run(None, {name: inputs[name] for name in names})[0])

    return run


def openvino_contestant(model: Path, threads: int) -> Contestant:
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",  # where it would take bfloat16
    }
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    names = [value.get_any_name() for value in compiled.inputs]
    request = compiled.create_infer_request()

    def run(inputs: Inputs) -> Floats:
        result = request.infer({name: inputs[name] for name in names}, share_inputs=True)
        return mean(result[0])

    return run


def mean(states: Floats) -> Floats:
    """Pooled hidden states of length 1, without padding."""
    pooled = states.mean(axis=1)
    vectors: Floats = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return vectors


def contestants(
    checkpoint: Path, bundles: list[Path], onnx: Path | None, threads: int
) -> Iterator[tuple[str, Callable[[], Contestant]]]:
    """Names and how to open them; the first is what the others are compared with."""
    for bundle in bundles:
        yield bundle.name, lambda bundle=bundle: bundle_contestant(bundle, threads)
    for attention in ("sdpa", "eager"):
        yield (
            f"transformers {attention}",
            lambda attention=attention: transformers_contestant(checkpoint, attention),
        )
    if onnx is not None:
        yield "optimum-onnx", lambda: onnxruntime_contestant(onnx, threads, fastembed=False)
        yield "fastembed", lambda: onnxruntime_contestant(onnx, threads, fastembed=True)
        yield "OpenVINO", lambda: openvino_contestant(onnx, threads)


def measure(
    opened: dict[str, Contestant], rows: int, tokens: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Of each contestant the median, in tokens a second, and its cosine with the first one's."""
    ids = np.random.default_rng(tokens).integers(1000, 20_000, (rows, tokens))
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    vectors = {name: run(inputs) for name, run in opened.items()}
    reference = next(iter(vectors.values()))
    seconds: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(min(MOST, max(FEWEST, TOKENS // (rows * tokens)))):
        for name in random.sample(list(opened), len(opened)):
            begin = clock()
            opened[name](inputs)
            seconds[name].append(clock() - begin)
    return {
        name: {
            "tokens_per_second": rows * tokens / statistics.median(seconds[name]),
            "cosine": float((vectors[name] * reference).sum(axis=1).min()),
        }
        for name in opened
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--onnx", type=Path, help="the checkpoint's graph by another exporter")
    parser.add_argument("--sequences", type=int, nargs="+", default=SEQUENCES, metavar="TOKENS")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="ROWS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="of one thread")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    import torch

    threads = 1 if arguments.processor_time else arguments.threads
    torch.set_num_threads(threads)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    opened: dict[str, Contestant] = {}
    listed = contestants(arguments.checkpoint, arguments.bundles, arguments.onnx, threads)
    for name, opening in listed:
        try:
            opened[name] = opening()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    figures: dict[str, Any] = {}
    print("| tokens | rows | " + " | ".join(opened) + " |")
    print("| --- | --- |" + " --- |" * len(opened))
    for tokens in arguments.sequences:
        for rows in arguments.batches:
            found = measure(opened, rows, tokens, clock)
            figures[f"{tokens}x{rows}"] = found
            first = next(iter(found.values()))["tokens_per_second"]
            cells = [
                f"{each['tokens_per_second']:,.0f} ({each['tokens_per_second'] / first:.2f})"
                for each in found.values()
            ]
            print(f"| {tokens} | {rows} | " + " | ".join(cells) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
