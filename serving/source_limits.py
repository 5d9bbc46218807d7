"""What an encoder-decoder's bundle can be opened with."""

from serving.bundle import SourceInfo
from serving.errors import UserError


def choose_source_capacity(
    source: SourceInfo | None, capacity: int | None, default: int
) -> int | None:
    """Most tokens of a source; None if there are none. Raises UserError for what isn't possible."""
    if source is None:
        if capacity is not None:
            raise UserError(
                "source_capacity is about encoder-decoders, and this bundle is none: leave it out."
            )
        return None
    if capacity is None:
        return min(source.max_length, default)
    if not 1 <= capacity <= source.max_length:
        raise UserError(
            f"source_capacity is {capacity}, but this model reads from 1 to {source.max_length} "
            "tokens: change source_capacity=."
        )
    return capacity


def refuse_for_sources(*, in_python: bool, has_draft: bool, keeps_prefixes: bool) -> None:
    """Raise UserError for what an encoder-decoder can't be opened with."""
    if not in_python:
        raise UserError(
            "Encoder-decoders run in ONNX Runtime on the CPU only: take target='onnxruntime', and "
            "leave provider and runtime out."
        )
    if has_draft:
        raise UserError("Nothing drafts for an encoder-decoder yet: leave draft= out.")
    if keeps_prefixes:
        raise UserError(
            "What an encoder-decoder computes depends on the whole source, so none of it is "
            "reused: leave prefix_rows out."
        )
