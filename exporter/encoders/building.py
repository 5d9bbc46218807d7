"""Building an encoder's engines from its standard graph, and what the gate has to run for them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from engines import onnxruntime as onnxruntime_target
from engines.encoders.onnxruntime import lower_encoder
from engines.linears import find_linears
from engines.passes.sizes import static_size
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
    lower_encoder(model)
    directory.mkdir()
    onnxruntime_target.write(model, directory)
    return EncoderSubject(directory, ())


def build_encoder_engines(
    model: ir.Model, partial: Path
) -> tuple[list[EngineInfo], list[EncoderSubject]]:
    """Build every target's engine into ``partial``, and say what the gate has to run for them."""
    lower_encoder(model)
    onnxruntime_target.write(model, partial)
    engine = EngineInfo(
        target="onnxruntime",
        file=onnxruntime_target.MODEL_FILE,
        weight_bytes=(partial / onnxruntime_target.WEIGHTS_FILE).stat().st_size,
        runtime_version=version_of("onnxruntime"),
    )
    return [engine], [EncoderSubject(partial, ("onnxruntime",))]
