"""Building engines from the standard graph, and what the gates have to run for them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from engines import onnxruntime as onnxruntime_target
from engines.linears import find_linears
from engines.passes.embeddings import last_hidden_states
from engines.passes.joined_ranks import join_ranks
from engines.passes.lora_inputs import lora_tables
from engines.passes.sizes import static_size
from engines.passes.tensor_parallel import split_into_ranks
from engines.standard import optimize
from engines.tensorrt.callbacks import Progress, show_nothing
from exporter.gate import Subject, capacity_of
from exporter.plan import Plan
from exporter.structure import attention_windows
from exporter.versions import version_of
from serving.bundle import EngineInfo, GraphInfo, LayerInfo, Target
from serving.contract import CONTRACT_VERSION

_INTEGERS = (ir.DataType.INT4, ir.DataType.INT8)


def graph_info(model: ir.Model, plan: Plan) -> GraphInfo:
    """What the manifest says of the graph; pruning may have changed the layers."""
    graph = model.graph
    pasts = [value for value in graph.inputs if (value.name or "").startswith("past_key_values.")]
    linears = list(find_linears(model))
    windows = attention_windows(model, len(pasts) // 2)
    states = last_hidden_states(model) if "onnxruntime" in plan.targets else None
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
        integer_weights=any(
            linear.dequantize and are_integers(linear.dequantize.outputs[0]) for linear in linears
        ),
        integer_activations=any(are_integers(linear.source) for linear in linears),
        layers=tuple(layers),
        lora=lora_tables(model),
        max_length=plan.max_length,
        hidden_size=static_size(states, 2) if states is not None else None,
    )


def are_integers(value: ir.Value) -> bool:
    """Whether a value is dequantised integers."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return False
    operand = producer.inputs[0]
    return operand is not None and operand.dtype in _INTEGERS


def build_engines(
    model: ir.Model,
    partial: Path,
    graph: GraphInfo,
    plan: Plan,
    *,
    progress: Progress = show_nothing,
    writes_exact: bool = True,
) -> tuple[list[EngineInfo], list[Subject]]:
    """Build every target's engine into ``partial``, and say what the gate has to run for them.

    ``progress`` is told how far the build of a TensorRT engine is. Without ``writes_exact`` the
    caller keeps the standard graph of a quantised model itself.
    """
    engines: list[EngineInfo] = []
    subjects: list[Subject] = []
    tensorrt = tuple(target for target in plan.targets if target != "onnxruntime")
    if tensorrt:
        ranks = split_into_ranks(model, plan.tensor_parallel)
        subjects.append(_write_check_graph(ranks, partial / "check", graph, plan, tensorrt))
        engines += [
            _build_tensorrt(ranks, rank, target, partial, plan, progress)
            for target in tensorrt
            for rank in range(len(ranks))
        ]
    if "onnxruntime" in plan.targets:
        needs_exact = (graph.is_quantized or plan.is_float8) and writes_exact
        exact = write_exact(model, partial / "exact") if needs_exact else None
        onnxruntime_target.lower(model)
        onnxruntime_target.write(model, partial)
        if graph.dtype != "float32" and not graph.lora:  # CUDA has no attention for float32
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


def _build_tensorrt(
    ranks: Sequence[ir.Model],
    rank: int,
    target: Target,
    partial: Path,
    plan: Plan,
    progress: Progress,
) -> EngineInfo:
    """Build the engine of one rank, which may be the only one."""
    from engines.tensorrt.builder import PREFILL_CHUNK, build

    is_only = len(ranks) == 1
    built = build(
        ranks[rank].clone(),
        partial,
        target=target,
        max_length=plan.max_length,
        batch=plan.batch,
        rank=None if is_only else rank,
        prefill_chunk=plan.prefill_chunk or PREFILL_CHUNK,
        options=plan.build_options,
        progress=progress,
    )
    return EngineInfo(
        target=target,
        file=built.name,
        weight_bytes=plan.engine_bytes if is_only else weight_bytes_of(ranks[rank]),
        max_batch=plan.batch,
        max_sequence=plan.max_length,
        prefill_chunk=built.prefill_chunk,
        runtime_version=built.runtime_version,
        **asdict(built.portability),
        rank=rank,
        ranks=len(ranks),
    )


def weight_bytes_of(model: ir.Model) -> int:
    """Bytes of a graph's initialisers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _write_check_graph(
    ranks: Sequence[ir.Model],
    directory: Path,
    graph: GraphInfo,
    plan: Plan,
    targets: tuple[Target, ...],
) -> Subject:
    """Write the graph as lowered for TensorRT, which is standard ONNX, for ONNX Runtime to run.

    That of several ranks is one graph, in which they run in lock-step.
    """
    from engines.passes.widened_float8 import widen_float8_weights
    from engines.tensorrt.lowering import lower

    lowered = [model.clone() for model in ranks]
    for model in lowered:
        lower(model, capacity_of(plan))
    model = join_ranks(lowered)
    weight_bytes = weight_bytes_of(model)
    widen_float8_weights(model)  # else they are dequantised in each step, which takes long
    graph = widen_bfloat16(model, graph)
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return Subject(directory, graph, targets, engine_weight_bytes=weight_bytes)


def widen_bfloat16(model: ir.Model, graph: GraphInfo) -> GraphInfo:
    """Compute a bfloat16 graph in float32, in place: ONNX Runtime has no kernels for it."""
    from engines.passes.widened_floats import widen_floats

    if graph.dtype != "bfloat16":
        return graph
    widen_floats(model, ir.DataType.BFLOAT16)
    return graph.model_copy(update={"dtype": "float32"})


def write_uncompressed(model: ir.Model, directory: Path, plan: Plan) -> Subject:
    """Write the graph as it is before it is made smaller, for the parity gate."""
    model = model.clone()
    optimize(model, plan.adapted)
    graph = widen_bfloat16(model, graph_info(model, plan))
    onnxruntime_target.lower(model)
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return Subject(directory, graph, ())


def write_exact(model: ir.Model, directory: Path) -> Path:
    """Write the standard Q/DQ graph, which says what the lowered one has to compute."""
    directory.mkdir()
    onnxruntime_target.write(model.clone(), directory)
    return directory
