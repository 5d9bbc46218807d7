"""What a server knows of a bundle with an encoder and a decoder, and what it can't be asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle, SpecialTokens
from serving.errors import UserError
from serving.generation_config import generation_defaults
from serving.http.errors import invalid

if TYPE_CHECKING:
    from serving.http.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class EncoderDecoder:
    """The ``tokens`` that its outputs begin with, and the options that its checkpoint wants."""

    tokens: SpecialTokens
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, bundle: Bundle) -> "EncoderDecoder | None":
        """That of a bundle; None if it is none."""
        if not has_sources(bundle):
            return None
        return cls(bundle.manifest.tokens, generation_defaults(bundle))


def has_sources(bundle: Bundle) -> bool:
    """Whether a bundle is an encoder-decoder's."""
    graph = bundle.manifest.graph
    return graph is not None and graph.source is not None


def loading_for(bundle: Bundle, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters of serving.load for all bundles of a server, those for one of them.

    Decoders have no sources. Of sources nothing is reused, so encoder-decoders have no prefix rows.
    """
    if has_sources(bundle):
        return {**loading, "prefix_rows": 0}
    return {name: value for name, value in loading.items() if name != "source_capacity"}


def check_source_capacity(bundles: Mapping[str, Bundle], loading: Mapping[str, Any]) -> None:
    """Raise UserError if sources are limited and no bundle of the server has any."""
    if loading.get("source_capacity") and not any(map(has_sources, bundles.values())):
        raise UserError(
            "--source-capacity is for encoder-decoders, and no bundle is one: leave it out."
        )


def refuse_encoder_decoder(model: "ServedModel", why: str) -> None:
    """Raise ApiError if the model is an encoder-decoder, which ``why`` follows."""
    if model.encoder_decoder is not None:
        raise invalid(
            "model",
            f"The model '{model.name}' is an encoder-decoder, {why}: ask it at /v1/completions or "
            f"/models/{model.name}.",
        )
