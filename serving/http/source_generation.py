"""From sources and what a request says of their outputs to a generation of an encoder-decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from serving.engine import IntArray
from serving.errors import UserError
from serving.generation_config import with_defaults
from serving.http.access import Caller
from serving.http.errors import invalid
from serving.http.generating import Generation
from serving.http.request_checks import check_count
from serving.http.request_limits import RequestLimits
from serving.http.searching import Search, beam_parameters
from serving.http.served_model import ServedModel
from serving.sequences import SequenceOptions
from serving.sources import SourcePrompts

_OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")


async def source_generation(
    model: ServedModel,
    caller: Caller,
    sources: Sequence[str | list[int]],
    given: Mapping[str, Any],
    limits: RequestLimits,
    *,
    param: str,
    n: int = 1,
    priority: int = 0,
    stream: bool = False,
) -> Generation:
    """The outputs of ``sources``, with options of Model.generate as ``given``, else the bundle's.

    ``param`` is where the sources come from. Raises ApiError for what can't be run.
    """
    assert model.encoder_decoder is not None
    prompts = SourcePrompts(model.prompts, model.encoder_decoder.tokens, model.source_capacity)
    options = {name: value for name, value in given.items() if value is not None}
    language = options.pop("source_language", None)
    overflow = options.get("context_overflow", "refuse")
    encoded = []
    for source in sources:
        ids = await model.encode(source, param)
        if limits.prompt_tokens is not None:
            check_count(param, len(ids), limits.prompt_tokens, "tokens")
        _check_source(ids, model.source_capacity, overflow, param)
        encoded.append(_with_param("source_language", prompts.source, ids, overflow, language))
    target = options.get("target_language")
    beginning, _ = _with_param("target_language", prompts.beginning, None, target)
    most = model.capacity - len(beginning)
    _check_length(options, most, limits)
    allowed = most if limits.new_tokens is None else min(most, limits.new_tokens)
    defaults = model.encoder_decoder.defaults
    options = {"max_new_tokens": allowed} | with_defaults(options, defaults, allowed, stream=stream)
    search = {name: options.pop(name) for name in _OF_BEAMS if name in options}
    beams = beam_parameters(search, n)
    generation = Generation(model, caller, encoded, cast(SequenceOptions, options), n, priority)
    check_count("n", generation.choices, limits.choices, "choices")
    return Search.of(generation, beams, stream=stream)


def _check_source(ids: IntArray, capacity: int, overflow: str, param: str) -> None:
    if len(ids) > capacity and overflow != "truncate":
        raise invalid(
            param,
            f"This model reads at most {capacity} tokens, and '{param}' has {len(ids)}: shorten "
            "it, or have its end left out.",
            "context_length_exceeded",
        )


def _check_length(options: Mapping[str, Any], most: int, limits: RequestLimits) -> None:
    """Raise ApiError if more new tokens are asked for than there may be."""
    new = max(options.get("max_new_tokens", 1), options.get("min_new_tokens", 0))
    if limits.new_tokens is not None:
        check_count("max_tokens", new, limits.new_tokens, "new tokens")
    if new > most:
        raise invalid(
            "max_tokens",
            f"This model's outputs have at most {most} tokens, and {new} are asked for: ask for "
            "fewer.",
            "context_length_exceeded",
        )


def _with_param(param: str, make: Any, *arguments: Any) -> Any:
    """What ``make`` returns; what it refuses is about a parameter of the request."""
    try:
        return make(*arguments)
    except UserError as error:
        raise invalid(param, str(error)) from error
