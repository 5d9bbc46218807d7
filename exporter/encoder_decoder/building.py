"""Building engines from an encoder-decoder's two graphs, and what the gates run for them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
from transformers import PreTrainedModel

from engines import onnxruntime as onnxruntime_target
from engines.passes.sizes import static_size
from engines.quantization.apply import QuantizationReport, quantize
from engines.standard import optimize
from engines.tensorrt.callbacks import Progress
from exporter.building import graph_info, weight_bytes_of, widen_bfloat16
from exporter.compression import CompressionReport
from exporter.gate import Subject, capacity_of
from exporter.plan import Plan
from exporter.structure import WeightAccount
from exporter.versions import version_of
from serving.bundle import EngineInfo, GraphInfo, LayerInfo, SourceInfo, Target
from serving.contract import PARTS, cross_name


@dataclass(frozen=True)
class TracedPair:
    """The two standard graphs and what was learnt on the way to them."""

    encoder: ir.Model
    decoder: ir.Model
    source: PreTrainedModel
    """The model whose weights the graphs refer to, needed until they are written."""
    weights: WeightAccount
    unused: tuple[str, ...]


def source_info(decoder: ir.Model, plan: Plan) -> SourceInfo:
    """What the manifest says of the source that a decoder graph reads."""
    inputs = {value.name: value for value in decoder.graph.inputs}
    layers = []
    for number in range(len(plan.layers)):
        key, value = (inputs[cross_name(number, part)] for part in PARTS)
        layers.append(
            LayerInfo(
                kv_heads=static_size(key, 1),
                key_dim=static_size(key, 3),
                value_dim=static_size(value, 3),
            )
        )
    assert plan.max_source_length is not None
    return SourceInfo(layers=tuple(layers), max_length=plan.max_source_length)


def pair_info(traced: TracedPair, plan: Plan) -> GraphInfo:
    """What the manifest says of the graphs. Hidden states behind a source embed no text."""
    graph = graph_info(traced.decoder, plan)
    source = source_info(traced.decoder, plan)
    return graph.model_copy(update={"source": source, "hidden_size": None})


def quantize_pair(traced: TracedPair, plan: Plan, scratch: Path) -> CompressionReport:
    """Quantise the weights of both graphs in place, each by itself; no text is looked at."""
    with TemporaryDirectory(dir=scratch) as workspace:
        encoder, decoder = (
            quantize(graph, plan.recipe, (), Path(workspace)).schemes
            for graph in (traced.encoder, traced.decoder)
        )
    return CompressionReport(quantization=QuantizationReport(encoder | decoder))


def optimize_pair(traced: TracedPair) -> None:
    """Give both graphs the passes that every target gets, in place."""
    optimize(traced.encoder)
    optimize(traced.decoder)


def write_pair(traced: TracedPair, directory: Path, *, lowers: bool = True) -> None:
    """Write copies of both graphs for ONNX Runtime, as they are or lowered."""
    directory.mkdir(exist_ok=True)
    for graph, name in _files(traced):
        copy = graph.clone()
        if lowers:
            onnxruntime_target.lower(copy)
        onnxruntime_target.write(copy, directory, name)


def write_uncompressed(traced: TracedPair, directory: Path, plan: Plan) -> Subject:
    """Write the graphs as they are before they are made smaller, for the parity gate."""
    write_pair(traced, directory)
    return Subject(directory, pair_info(traced, plan), ())


def build_pair(
    traced: TracedPair, partial: Path, graph: GraphInfo, plan: Plan, progress: Progress
) -> tuple[list[EngineInfo], list[Subject]]:
    """Build every target's engines into ``partial``, and say what the gate has to run for them."""
    engines: list[EngineInfo] = []
    subjects: list[Subject] = []
    if tensorrt := tuple(target for target in plan.targets if target != "onnxruntime"):
        subjects.append(_write_check_graphs(traced, partial / "check", graph, plan, tensorrt))
        engines += [_build_tensorrt(traced, target, partial, plan, progress) for target in tensorrt]
    if "onnxruntime" in plan.targets:
        exact = None
        if graph.is_quantized:
            exact = partial / "exact"
            write_pair(traced, exact, lowers=False)
        write_pair(traced, partial)
        engines.insert(
            0,
            EngineInfo(
                target="onnxruntime",
                file=onnxruntime_target.MODEL_FILE,
                weight_bytes=_size(partial, onnxruntime_target.MODEL_FILE),
                encoder=onnxruntime_target.ENCODER_FILE,
                encoder_weight_bytes=_size(partial, onnxruntime_target.ENCODER_FILE),
                runtime_version=version_of("onnxruntime"),
            ),
        )
        subjects.insert(0, Subject(partial, graph, ("onnxruntime",), exact))
    return engines, subjects


def _write_check_graphs(
    traced: TracedPair, directory: Path, graph: GraphInfo, plan: Plan, targets: tuple[Target, ...]
) -> Subject:
    """Write the graphs as lowered for TensorRT, standard ONNX still, for ONNX Runtime to run."""
    from engines.tensorrt.lowering import lower, lower_source_encoder

    encoder, decoder = traced.encoder.clone(), traced.decoder.clone()
    lower_source_encoder(encoder)
    lower(decoder, capacity_of(plan), plan.max_source_length)
    weight_bytes = weight_bytes_of(decoder)
    widen_bfloat16(encoder, graph)
    graph = widen_bfloat16(decoder, graph)
    directory.mkdir()
    onnxruntime_target.write(encoder, directory, onnxruntime_target.ENCODER_FILE)
    onnxruntime_target.write(decoder, directory)
    return Subject(directory, graph, targets, engine_weight_bytes=weight_bytes)


def _build_tensorrt(
    traced: TracedPair, target: Target, partial: Path, plan: Plan, progress: Progress
) -> EngineInfo:
    """Build a target's two engines."""
    from engines.tensorrt.builder import PREFILL_CHUNK, build, build_encoder

    assert plan.max_source_length is not None
    encoder = build_encoder(
        traced.encoder.clone(),
        partial,
        target=target,
        max_source=plan.max_source_length,
        options=plan.build_options,
        progress=progress,
    )
    decoder = build(
        traced.decoder.clone(),
        partial,
        target=target,
        max_length=plan.max_length,
        batch=plan.batch,
        prefill_chunk=plan.prefill_chunk or PREFILL_CHUNK,
        max_source=plan.max_source_length,
        options=plan.build_options,
        progress=progress,
    )
    return EngineInfo(
        target=target,
        file=decoder.name,
        weight_bytes=weight_bytes_of(traced.decoder),
        encoder=encoder.name,
        encoder_weight_bytes=weight_bytes_of(traced.encoder),
        max_batch=plan.batch,
        max_sequence=plan.max_length,
        prefill_chunk=decoder.prefill_chunk,
        runtime_version=decoder.runtime_version,
        **asdict(decoder.portability),
    )


def _files(traced: TracedPair) -> Sequence[tuple[ir.Model, str]]:
    return (
        (traced.encoder, onnxruntime_target.ENCODER_FILE),
        (traced.decoder, onnxruntime_target.MODEL_FILE),
    )


def _size(directory: Path, name: str) -> int:
    return (directory / f"{name}.data").stat().st_size
