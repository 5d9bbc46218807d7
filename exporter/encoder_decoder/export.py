"""The way of an encoder-decoder: checkpoint to two graphs to engines, checked together."""

from pathlib import Path
from typing import TYPE_CHECKING

from engines.standard import simplify
from exporter.attention import UntraceableError
from exporter.calibration_windows import token_windows
from exporter.checkpoint import Checkpoint, load, refuse_non_finite, release_weights
from exporter.encoder_decoder.building import (
    TracedPair,
    build_pair,
    optimize_pair,
    pair_info,
    quantize_pair,
    write_uncompressed,
)
from exporter.encoder_decoder.float16_range import keep_pair_in_range
from exporter.encoder_decoder.structure import account_both, check_decoder, check_encoder
from exporter.encoder_decoder.tracing import Layers, trace_decoder, trace_encoder
from exporter.gate import check_parity
from exporter.plan import DTYPES, Plan, refusal
from exporter.quality_gate import check_quality
from exporter.report import Report
from exporter.structure import GraphError
from exporter.tokenization import write_tokenizer
from serving.errors import UserError

if TYPE_CHECKING:
    from exporter.export import Clock, Request


def build_encoder_decoder(
    partial: Path, request: "Request", checkpoint: Checkpoint, plan: Plan, clock: "Clock"
) -> Report:
    """Make the engines of an encoder-decoder in ``partial``, and check them."""
    measures_quality = plan.is_compressed or request.asks_for_quality
    windows, islands = None, None
    if measures_quality or plan.dtype == "float16":
        with clock.stage("Reading text"):
            windows = token_windows(checkpoint, plan.max_length, request.calibration)
    with clock.stage("Tracing"):
        pair = trace_pair(checkpoint, plan)
    before, compression = [], None
    try:
        optimize_pair(pair)
        if plan.dtype == "float16" and windows is not None:
            assert plan.max_source_length is not None
            with clock.stage("Checking range"):
                islands = keep_pair_in_range(
                    pair, plan.model, list(windows.calibration), plan.max_source_length, partial
                )
        if plan.is_compressed:
            with clock.stage("Compressing"):
                before = [write_uncompressed(pair, partial / "before", plan)]
                compression = quantize_pair(pair, plan, partial)
        with clock.stage("Writing"):
            graph = pair_info(pair, plan)
            engines, subjects = build_pair(pair, partial, graph, plan, clock.stages.progress)
            write_tokenizer(checkpoint.directory, partial)
    except ValueError as error:  # a pass can't express this architecture
        raise refusal(checkpoint, error) from error
    release_weights(pair.source)
    with clock.stage("Checking parity"):
        parity = check_parity(checkpoint, plan, before or subjects)
    if not parity.passed:
        raise UserError(f"{checkpoint.name} was not exported: {parity.reason()}.")
    quality = None
    if measures_quality and windows is not None:
        with clock.stage("Measuring quality"):
            quality = check_quality(checkpoint, plan, subjects, windows, request.limits, partial)
    for subject in (*before, *subjects):
        subject.remove()
    return Report(
        plan,
        graph,
        parity,
        pair.weights,
        pair.unused,
        engines,
        clock.seconds,
        islands,
        compression,
        quality,
    )


def refuse_options(request: "Request") -> None:
    """Raise UserError for what encoder-decoders can't have."""
    recipe = request.recipe
    given = {
        "--lora": request.lora,
        "--stages": request.stages > 1,
        "--tensor-parallel": request.tensor_parallel > 1,
        "--strip-weights": request.strip_weights,
        "--bisect": request.bisect,
        "what prunes": not request.pruning.is_empty,
        "--w8a8": recipe.activations,
        "--int8-kv": recipe.kv_cache,
        "--bits": recipe.is_mixed,
    }
    for option, is_given in given.items():
        if is_given:
            raise UserError(
                f"{option} isn't possible for encoder-decoders: leave it out with {request.model}."
            )
    if recipe.bits is not None and recipe.weight_method != "round-to-nearest":
        raise UserError(
            f"Weights of encoder-decoders can't be rounded by {recipe.weight_method}, which looks "
            "at text: add --method round-to-nearest."
        )


def trace_pair(checkpoint: Checkpoint, plan: Plan) -> TracedPair:
    """Load a checkpoint and trace both graphs; raises UserError if that isn't possible."""
    loaded = load(checkpoint, DTYPES[plan.dtype])
    refuse_non_finite(checkpoint, loaded.unused)
    model, layers = loaded.model, Layers(plan.layers, plan.source)
    try:
        encoder, decoder = trace_encoder(model, layers), trace_decoder(model, layers)
        check_encoder(encoder, len(plan.layers))
        check_decoder(decoder, len(plan.layers))
        weights = account_both(encoder, decoder, model)
    except (UntraceableError, GraphError) as error:
        raise refusal(checkpoint, error) from error
    simplify(encoder)
    simplify(decoder)
    return TracedPair(encoder, decoder, model, weights, loaded.unused)
