"""``/models/MODEL`` for encoder-decoders: translations and summaries in Hugging Face's shape."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.decoding import Token
from serving.http.access import Caller
from serving.http.answering import answer_whole
from serving.http.errors import invalid
from serving.http.schemas.answers import TextToText, Usage
from serving.http.schemas.text_to_text import GenerateParameters, TextToTextRequest
from serving.http.served_model import ServedModel
from serving.http.source_generation import source_generation
from serving.http.state import state_of

# Parameters that Model.generate has too.
_SAME = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
)
_CHOOSING = {"temperature", "top_k", "top_p"}


async def answer_text_to_text(
    body: TextToTextRequest, request: Request, caller: Caller, model: ServedModel
) -> Response:
    """Answer with an output for each text, under the names that it has in either task."""
    if model.encoder_decoder is None:
        raise invalid(
            "model",
            f"The model '{model.name}' is no encoder-decoder: ask it at /v1/completions or "
            "/v1/chat/completions.",
        )
    limits = state_of(request).limits
    generation = await source_generation(
        model, caller, body.texts, _options(body), limits, param="inputs"
    )
    return await answer_whole(request, generation, _Outputs(len(body.texts)), "parameters")


class _Outputs:
    """Gathers the outputs of so many texts."""

    def __init__(self, count: int) -> None:
        self._texts = [""] * count

    def add(self, choice: int, token: Token) -> None:
        """Take an output's next token."""
        self._texts[choice] += token.text

    def document(self, _: Usage) -> list[TextToText]:
        """The answer: a client takes the name of its task."""
        return [{"translation_text": text, "summary_text": text} for text in self._texts]


def _options(body: TextToTextRequest) -> dict[str, Any]:
    """Options of Model.generate."""
    parameters = body.parameters
    if parameters is None:
        return {}
    options = _generate_options(parameters)
    if parameters.generate_parameters is not None:
        options |= _generate_options(parameters.generate_parameters)
    options["source_language"] = parameters.source_language or parameters.src_lang
    options["target_language"] = parameters.target_language or parameters.tgt_lang
    if parameters.truncation == "only_second":
        raise invalid("parameters.truncation", "There is one text to truncate: say 'only_first'.")
    if parameters.truncation not in (None, "do_not_truncate"):
        options["context_overflow"] = "truncate"
    return options


def _generate_options(parameters: GenerateParameters) -> dict[str, Any]:
    options = {name: getattr(parameters, name) for name in _SAME}
    options = {name: value for name, value in options.items() if value is not None}
    for name, bound in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        length = getattr(parameters, bound)
        if length is not None:
            options.setdefault(name, max(0, length - 1))
    if parameters.do_sample is False:
        return {name: value for name, value in options.items() if name not in _CHOOSING}
    if parameters.do_sample:
        options.setdefault("temperature", 1.0)
    return options
