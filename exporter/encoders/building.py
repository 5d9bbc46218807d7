"""Building an encoder's engines from its standard graph, and what the gate has to run for them."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from engines import onnxruntime as onnxruntime_target
from engines.linears import find_linears
from engines.passes.sizes import static_size
from engines.tensorrt.callbacks import Progress, show_nothing
from exporter.building import are_integers
from exporter.checkpoint import Checkpoint
from exporter.encoders.plan import EncoderPlan
from exporter.tokenization import load_tokenizer
from exporter.versions import version_of
from serving.bundle import EncoderInfo, EngineInfo, Target
from serving.contract import EMBEDDINGS
from serving.encoders.contract import ENCODER_CONTRACT_VERSION


@dataclass(frozen=True)
class EncoderSubject:
    """A graph in ONNX Runtime that stands for engines, or for none: what they are made from."""

    directory: Path
    targets: tuple[Target, ...]

    @property
    def file(self) -> Path:
        """The graph."""
        return self.directory / onnxruntime_target.MODEL_FILE

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return (self.directory / onnxruntime_target.WEIGHTS_FILE).stat().st_size

    @property
    def is_engine(self) -> bool:
        """Whether it is the very engine that will be served."""
        return self.targets == ("onnxruntime",)

    def describe(self) -> str:
        """Say what was run."""
        where = f"in ONNX Runtime {version_of('onnxruntime')} on the CPU"
        if self.is_engine:
            return f"the engine {where}"
        if not self.targets:
            return f"the graph before quantisation, {where}"
        return (
            f"the graph that {' and '.join(self.targets)} was built from, {where} (the engine "
            "itself needs a GPU and was not run)"
        )

    def remove(self) -> None:
        """Remove what was written for the gates only."""
        if not self.is_engine:
            shutil.rmtree(self.directory)


def encoder_info(
    model: ir.Model, plan: EncoderPlan, checkpoint: Checkpoint, labels: tuple[str, ...]
) -> EncoderInfo:
    """What the manifest says of the graph."""
    linears = list(find_linears(model))
    outputs = {value.name: value for value in model.graph.outputs}
    is_embed = plan.task == "embed"
    tokenizer = load_tokenizer(checkpoint.directory)
    return EncoderInfo(
        contract_version=ENCODER_CONTRACT_VERSION,
        task=plan.task,
        vocab_size=checkpoint.config.get_text_config().vocab_size,
        dtype=plan.dtype,
        integer_weights=any(
            linear.dequantize and are_integers(linear.dequantize.outputs[0]) for linear in linears
        ),
        integer_activations=any(are_integers(linear.source) for linear in linears),
        token_types=plan.token_types,
        max_length=plan.max_length,
        hidden_size=static_size(outputs[EMBEDDINGS], 1) if is_embed else None,
        pooling=plan.sentences.pooling if is_embed else None,
        normalize=plan.sentences.normalize,
        labels=labels,
        is_multi_label=checkpoint.config.problem_type == "multi_label_classification",
        mask_token=tokenizer.mask_token_id if tokenizer and plan.task == "fill-mask" else None,
    )


def write_uncompressed(model: ir.Model, directory: Path) -> EncoderSubject:
    """Write the graph as it is before it is quantised, for the parity gate."""
    model = model.clone()
    onnxruntime_target.lower(model)
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return EncoderSubject(directory, ())


def build_encoder_engines(
    model: ir.Model, partial: Path, plan: EncoderPlan, *, progress: Progress = show_nothing
) -> tuple[list[EngineInfo], list[EncoderSubject]]:
    """Build every target's engine into ``partial``, and say what the gate has to run for them."""
    engines: list[EngineInfo] = []
    subjects: list[EncoderSubject] = []
    tensorrt = tuple(target for target in plan.targets if target != "onnxruntime")
    if tensorrt:
        subjects.append(_write_check_graph(model, partial / "check", tensorrt))
        engines += [_build_tensorrt(model, target, partial, plan, progress) for target in tensorrt]
    if "onnxruntime" in plan.targets:
        onnxruntime_target.lower(model)
        onnxruntime_target.write(model, partial)
        engine = EngineInfo(
            target="onnxruntime",
            file=onnxruntime_target.MODEL_FILE,
            weight_bytes=(partial / onnxruntime_target.WEIGHTS_FILE).stat().st_size,
            runtime_version=version_of("onnxruntime"),
        )
        engines.insert(0, engine)
        subjects.insert(0, EncoderSubject(partial, ("onnxruntime",)))
    return engines, subjects


def _build_tensorrt(
    model: ir.Model, target: Target, partial: Path, plan: EncoderPlan, progress: Progress
) -> EngineInfo:
    from engines.encoders.tensorrt import build_encoder

    weights = (value.const_value for value in model.graph.initializers.values())
    built = build_encoder(
        model.clone(),
        partial,
        target=target,
        max_length=plan.max_length,
        batch=plan.batch,
        options=plan.build_options,
        progress=progress,
    )
    return EngineInfo(
        target=target,
        file=built.name,
        weight_bytes=sum(weight.nbytes for weight in weights if weight is not None),
        max_batch=plan.batch,
        max_sequence=plan.max_length,
        runtime_version=built.runtime_version,
        **asdict(built.portability),
    )


def _write_check_graph(
    model: ir.Model, directory: Path, targets: tuple[Target, ...]
) -> EncoderSubject:
    """Write the graph as lowered for TensorRT, which is standard ONNX, for ONNX Runtime to run."""
    from engines.tensorrt.lowering import lower_encoder

    lowered = model.clone()
    lower_encoder(lowered)
    directory.mkdir()
    onnxruntime_target.write(lowered, directory)
    return EncoderSubject(directory, targets)
