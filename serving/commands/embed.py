"""``serve-llm embed``: a vector for each text."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click

from serving.commands.encoder_options import batch_option, long_text_options, say_cut
from serving.commands.options import (
    OpenOptions,
    bundle_argument,
    json_option,
    key_file_option,
    load_options,
    refuse_given,
    verify_option,
)
from serving.errors import UserError

if TYPE_CHECKING:
    from serving.embedding import Embeddings, Pooling
    from serving.encoders.results import TextEmbeddings

_DECODER_ONLY = {"pooling", "normalize", "capacity", "provider", "prefill_chunk", "prepack"}


@click.command()
@bundle_argument
@click.argument("texts", nargs=-1)
@click.option(
    "--pooling",
    type=click.Choice(["last", "mean"]),
    default="last",
    help="Of a decoder, whose hidden states: the last token's, or the mean of all (default: last).",
)
@click.option(
    "--normalize/--no-normalize",
    default=True,
    help="Of a decoder, vectors of length 1 (default: yes).",
)
@long_text_options
@batch_option
@load_options
@verify_option
@key_file_option
@json_option
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    pooling: "Pooling",
    normalize: bool,
    context_overflow: Literal["refuse", "truncate", "segments"],
    overlap: int | None,
    batch_tokens: int,
    as_json: bool,
    **opening: Unpack[OpenOptions],
) -> None:
    """Embed TEXTS (default: the lines of standard input) with the model in BUNDLE.

    Prints a line of numbers for each text. An encoder pools and normalises as its checkpoint says.
    """
    from serving.bundle import open_bundle

    lines = texts or tuple(sys.stdin.read().splitlines())
    opened = open_bundle(bundle, opening["verify"], opening["key_file"])
    if opened.manifest.encoder is not None:
        refuse_given(_DECODER_ONLY, "is for bundles of decoders: leave it out for an encoder.")
        from serving.encoders.opening import open_encoder

        with open_encoder(
            opened,
            target=opening["target"],
            threads=opening["threads"],
            batch_tokens=batch_tokens,
        ) as encoder:
            found = encoder.embed(lines, context_overflow=context_overflow, overlap=overlap)
        _print(found, found.segments, as_json=as_json)
        return
    refuse_given({"overlap", "batch_tokens"}, "is for bundles of encoders: leave it out.")
    if context_overflow == "segments":
        raise UserError("Decoders don't embed texts in segments: refuse or truncate long ones.")
    from serving.loading import load

    opening["verify"] = False  # that is done
    with load(bundle, slots=1, **opening) as model:
        result = model.embed(
            lines, pooling=pooling, normalize=normalize, context_overflow=context_overflow
        )
    _print(result, [1] * len(result.truncated), as_json=as_json)


def _print(result: "Embeddings | TextEmbeddings", segments: list[int], *, as_json: bool) -> None:
    vectors = result.vectors.tolist()
    rows = zip(vectors, result.prompt_tokens, result.truncated, segments, strict=True)
    if as_json:
        names = ("embedding", "prompt_tokens", "truncated", "segments")
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    for number, (vector, _, truncated, count) in enumerate(rows, 1):
        click.echo(" ".join(f"{value:.6g}" for value in vector))
        say_cut(number, truncated, count, "embedded")
