"""The graph for CUDA: no number crosses between host and device, and it computes the same."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from exporter.checkpoint import find_checkpoint, load
from exporter.parity import compare, random_prompts, run_engine
from serving.bundle import open_bundle
from serving.onnxruntime import OnnxRuntimeEngine
from tests.exports import export_bundle, once

CAPACITY = 128
# Inputs that ONNX Runtime's CUDA kernels read on the host, and kernels that write there.
HOST_INPUTS = {
    "GroupQueryAttention": {6},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "Expand": {1},
    "Squeeze": {1},
    "Unsqueeze": {1},
    "ReduceMax": {1},
    "ReduceSum": {1},
    "Split": {1},
}


@pytest.fixture(scope="module", params=["qwen2", "gemma2"])
def bundle(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Callable[[str], Path],
) -> tuple[Path, Path]:
    source = checkpoint(request.param)

    def make(path: Path) -> None:
        export_bundle(source, path, dtype="float16")

    return source, once(tmp_path_factory, f"{request.param}-float16", make)


def copies(model: ir.Model) -> set[str]:
    """What would cross, by the rule of ONNX Runtime's GetCpuPreferredNodes.

    A node runs on the host if all it reads is there: constants, inputs of the graph beside a shape,
    and what such nodes computed.
    """
    graph = model.graph
    inputs, host, crossing = set(graph.inputs), set[ir.Value](), set[str]()
    for node in graph:
        reads = [value for value in node.inputs if value is not None]
        by_kernel = HOST_INPUTS.get(node.op_type, set())
        variable = [
            (value, position in by_kernel)
            for position, value in enumerate(node.inputs)
            if value is not None and not value.is_initializer()
        ]
        from_host = [value for value, _ in variable if value in host]
        if node.op_type == "Shape":
            host.update(node.outputs)
        elif (
            from_host
            and all(value.is_initializer() or (value in host or value in inputs) for value in reads)
            and not any(on_host for value, on_host in variable if value in host)
        ):
            host.update(node.outputs)
            crossing |= {value.name or "" for value in reads if value in inputs}
        else:
            crossing |= {
                value.name or "" for value, on_host in variable if on_host != (value in host)
            }
    return crossing


def test_nothing_crosses_between_host_and_device(bundle: tuple[Path, Path]) -> None:
    _, path = bundle
    assert len(copies(ir.load(path / "model.onnx"))) >= 5  # what the pass is for
    assert copies(ir.load(path / "model.cuda.onnx")) == set()


def test_both_graphs_read_the_same_weights(bundle: tuple[Path, Path]) -> None:
    _, path = bundle
    assert (path / "model.cuda.onnx").stat().st_size < 100_000
    large = [
        value.const_value
        for value in ir.load(path / "model.cuda.onnx").graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > 1024
    ]
    assert len(large) > 4
    assert {getattr(tensor, "location", None) for tensor in large} == {"model.onnx.data"}


def test_it_computes_what_transformers_does(bundle: tuple[Path, Path]) -> None:
    source, path = bundle
    manifest = open_bundle(path).manifest
    prompts = random_prompts(manifest.graph.vocab_size, CAPACITY)
    with OnnxRuntimeEngine(
        path / "model.cuda.onnx", manifest.graph, slots=len(prompts), capacity=CAPACITY
    ) as engine:
        runs = run_engine(engine, prompts, CAPACITY)
    model = load(find_checkpoint(str(source)), torch.float32).model
    parity = manifest.parity  # with what the gate measured for this checkpoint
    report = compare(
        runs,
        model,
        engine="CUDA's graph",
        rounding=parity["tolerance_mean"],
        embedding_rounding=parity["embeddings"]["tolerance_mean"],
    )
    assert report.embeddings is not None
    assert report.passed, report.reason()
