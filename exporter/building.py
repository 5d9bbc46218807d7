"""Building engines from the standard graph, and what the gates have to run for them."""

from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from engines import onnxruntime as onnxruntime_target
from engines.linears import find_linears
from engines.passes.sizes import static_size
from engines.standard import optimize
from engines.tensorrt.callbacks import Progress, show_nothing
from exporter.gate import Subject, capacity_of
from exporter.plan import Plan
from exporter.structure import attention_windows
from exporter.versions import version_of
from serving.bundle import EngineInfo, GraphInfo, LayerInfo, Target
from serving.contract import CONTRACT_VERSION


def graph_info(model: ir.Model, plan: Plan) -> GraphInfo:
    """What the manifest says of the graph; pruning may have changed the layers."""
    graph = model.graph
    pasts = [value for value in graph.inputs if (value.name or "").startswith("past_key_values.")]
    linears = list(find_linears(model))
    windows = attention_windows(model, len(pasts) // 2)
    layers = (
        LayerInfo(
            kv_heads=static_size(key, 1),
            key_dim=static_size(key, 3),
            value_dim=static_size(value, 3),
            window=window,
        )
        for key, value, window in zip(pasts[::2], pasts[1::2], windows, strict=True)
    )
    return GraphInfo(
        contract_version=CONTRACT_VERSION,
        vocab_size=static_size(graph.outputs[0], 2),
        dtype=plan.dtype,
        quantized_cache="int8" if pasts[0].dtype == ir.DataType.INT8 else None,
        integer_weights=any(linear.dequantize for linear in linears),
        integer_activations=any(_is_dequantized(linear.source) for linear in linears),
        layers=tuple(layers),
        max_length=plan.max_length,
    )


def _is_dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def build_engines(
    model: ir.Model,
    partial: Path,
    graph: GraphInfo,
    plan: Plan,
    *,
    progress: Progress = show_nothing,
) -> tuple[list[EngineInfo], list[Subject]]:
    """Build every target's engine into ``partial``, and say what the gate has to run for them.

    ``progress`` is told how far the build of a TensorRT engine is.
    """
    engines: list[EngineInfo] = []
    subjects: list[Subject] = []
    tensorrt = tuple(target for target in plan.targets if target != "onnxruntime")
    if tensorrt:
        subjects.append(_write_check_graph(model.clone(), partial / "check", graph, plan, tensorrt))
    for target in tensorrt:
        from engines.tensorrt.builder import PREFILL_CHUNK, build

        built = build(
            model.clone(),
            partial,
            target=target,
            max_length=plan.max_length,
            batch=plan.batch,
            prefill_chunk=plan.prefill_chunk or PREFILL_CHUNK,
            options=plan.build_options,
            progress=progress,
        )
        engines.append(
            EngineInfo(
                target=target,
                file=built.name,
                weight_bytes=plan.engine_bytes,
                max_batch=plan.batch,
                max_sequence=plan.max_length,
                prefill_chunk=built.prefill_chunk,
                runtime_version=built.runtime_version,
                **asdict(built.portability),
            )
        )
    if "onnxruntime" in plan.targets:
        exact = _write_exact(model, partial / "exact") if graph.is_quantized else None
        onnxruntime_target.lower(model)
        onnxruntime_target.write(model, partial)
        if graph.dtype != "float32":  # CUDA has no attention for it
            onnxruntime_target.write_for_cuda(partial)
        engines.insert(
            0,
            EngineInfo(
                target="onnxruntime",
                file=onnxruntime_target.MODEL_FILE,
                weight_bytes=(partial / onnxruntime_target.WEIGHTS_FILE).stat().st_size,
                runtime_version=version_of("onnxruntime"),
            ),
        )
        subjects.insert(0, Subject(partial, graph, ("onnxruntime",), exact))
    return engines, subjects


def _write_check_graph(
    model: ir.Model, directory: Path, graph: GraphInfo, plan: Plan, targets: tuple[Target, ...]
) -> Subject:
    """Write the graph as lowered for TensorRT, which is standard ONNX, for ONNX Runtime to run."""
    from engines.passes.widened_floats import widen_floats
    from engines.tensorrt.lowering import lower

    lower(model, capacity_of(plan))
    if plan.dtype == "bfloat16":
        widen_floats(model, ir.DataType.BFLOAT16)
        graph = graph.model_copy(update={"dtype": "float32"})
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return Subject(directory, graph, targets)


def write_uncompressed(model: ir.Model, directory: Path, plan: Plan) -> Subject:
    """Write the graph as it is before it is made smaller, for the parity gate."""
    graph = graph_info(model, plan)
    model = model.clone()
    optimize(model)
    onnxruntime_target.lower(model)
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return Subject(directory, graph, ())


def _write_exact(model: ir.Model, directory: Path) -> Path:
    """Write the standard Q/DQ graph, which says what the lowered one has to compute."""
    directory.mkdir()
    onnxruntime_target.write(model.clone(), directory)
    return directory
