"""Opening an encoder's bundle."""

from pathlib import Path

from serving.bundle import Bundle, EngineInfo, Target, open_bundle
from serving.encoders.batching import BATCH_TOKENS
from serving.encoders.contract import ENCODER_CONTRACT_VERSION
from serving.encoders.engine import EncoderEngine
from serving.encoders.model import EncoderModel
from serving.errors import UserError
from serving.loading import find_engine, load_tokenizer


def load_encoder(
    bundle: str | Path,
    *,
    target: Target | None = None,
    threads: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    verify: bool = True,
    key_file: str | Path | None = None,
) -> EncoderModel:
    """Open an encoder's bundle.

    ``threads`` defaults to the physical cores; ``batch_tokens`` is the most tokens of a batch, with
    its padding. ``target``, ``verify`` and ``key_file`` as for serving.load. Raises UserError if
    the bundle is damaged, holds a decoder, or has no engine that runs here.
    """
    return open_encoder(
        open_bundle(bundle, verify, key_file),
        target=target,
        threads=threads,
        batch_tokens=batch_tokens,
    )


def open_encoder(
    bundle: Bundle,
    *,
    target: Target | None = None,
    threads: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> EncoderModel:
    """Open the encoder of a bundle whose files are checked; see ``load_encoder``."""
    info = choose_encoder_engine(bundle, target)
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, but must be at least 1: raise it.")
    encoder, tokenizer = bundle.manifest.require_encoder(), load_tokenizer(bundle)
    engine = EncoderEngine(bundle.location(info.file), encoder, threads=threads)
    tokens = bundle.manifest.tokens
    return EncoderModel(engine, encoder, tokens, tokenizer, batch_tokens=batch_tokens)


def choose_encoder_engine(bundle: Bundle, target: Target | None) -> EngineInfo:
    """The engine for ``target``, by default ONNX Runtime's.

    Raises UserError if the bundle holds a decoder, a graph of another contract, or no engine that
    runs here.
    """
    encoder = bundle.manifest.require_encoder()
    if encoder.contract_version != ENCODER_CONTRACT_VERSION:
        raise UserError(
            f"The bundle's graph follows version {encoder.contract_version} of the encoders' "
            f"contract, this export-llm runs version {ENCODER_CONTRACT_VERSION}: export the model "
            "again."
        )
    info = find_engine(bundle, target)
    if info.target != "onnxruntime":
        raise UserError(
            f"Encoders of {info.target} aren't run by this version: export the model for "
            "onnxruntime too, or run the engine with TensorRT yourself."
        )
    return info
