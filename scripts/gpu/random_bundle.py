"""Bundles of random weights: an architecture's shape, exported without the gates.

Nothing is checked, for what random weights say is of no use: speed is what they are for.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engines import onnxruntime as onnxruntime_target
from engines.packing import checksums, commit, reserved
from engines.standard import optimize, simplify
from engines.tensorrt.options import COMPUTE_CAPABILITIES, BuildOptions
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled
from exporter.versions import version_of
from serving.bundle import (
    EngineInfo,
    GraphInfo,
    LayerInfo,
    Manifest,
    ModelInfo,
    SpecialTokens,
    Target,
)
from serving.contract import CONTRACT_VERSION

SHARED: dict[str, Any] = {
    "model_type": "llama",
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA_1B: dict[str, Any] = SHARED | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
SMALL: dict[str, Any] = SHARED | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
}


def make_model(shape: dict[str, Any]) -> PreTrainedModel:
    """A model of this shape in float16 on the CPU."""
    torch.manual_seed(0)
    settings = dict(shape)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()


def write_bundle(model: PreTrainedModel, bundle: Path, target: Target, capacity: int) -> Path:
    """Export ``model`` for one target; TensorRT's engine is built for this chip if it is known."""
    layers = cache_layers(model)
    graph = trace_unrolled(model, layers)
    simplify(graph)
    optimize(graph)
    config, text = model.config, "random"
    weight_bytes = sum(weight.nbytes for weight in model.parameters())
    with reserved(bundle, force=False) as partial:
        if target == "onnxruntime":
            onnxruntime_target.lower(graph)
            onnxruntime_target.write(graph, partial)
            onnxruntime_target.write_for_cuda(partial)
            engine = EngineInfo(
                target=target,
                file=onnxruntime_target.MODEL_FILE,
                weight_bytes=weight_bytes,
                runtime_version=version_of("onnxruntime"),
            )
        else:
            from engines.tensorrt.builder import build

            built = build(
                graph,
                partial,
                target=target,
                max_length=capacity,
                batch=1,
                options=BuildOptions(compute_capabilities=_capability_here()),
            )
            engine = EngineInfo(
                target=target,
                file=built.name,
                weight_bytes=weight_bytes,
                max_batch=1,
                max_sequence=capacity,
                prefill_chunk=built.prefill_chunk,
                runtime_version=built.runtime_version,
                **asdict(built.portability),
            )
        layer = LayerInfo(
            kv_heads=config.num_key_value_heads, key_dim=config.head_dim, value_dim=config.head_dim
        )
        manifest = Manifest(
            format_version=1,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            built_with={},
            model=ModelInfo(
                name=text,
                architecture=config.model_type,
                parameters=model.num_parameters(),
                weight_bytes=weight_bytes,
            ),
            graph=GraphInfo(
                contract_version=CONTRACT_VERSION,
                vocab_size=config.vocab_size,
                dtype="float16",
                layers=(layer,) * config.num_hidden_layers,
                max_length=config.max_position_embeddings,
            ),
            engines=(engine,),
            tokens=SpecialTokens(),
            parity={"status": "not checked: the weights are random"},
            files=checksums(partial),
        )
        commit(partial, bundle, manifest, force=False)
    return bundle


def _capability_here() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    return (here,) if here in COMPUTE_CAPABILITIES else ()
