"""What a request asks for: from its input tensors to the options of a sequence."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from serving.beam_search import BeamParameters
from serving.constraints import Constraint
from serving.errors import UserError
from serving.prompts import Prompt
from serving.sampling import LEAST_TEMPERATURE
from serving.sequences import SequenceOptions

Array = npt.NDArray[Any]

# Tensors whose values are options of the same meaning, under the option's name.
_OPTIONS = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop_words": "stop",
    "bad_words": "bad_words",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "seed": "seed",
    "adapter": "adapter",
    "source_language": "source_language",
    "target_language": "target_language",
}
# Who sends one of these without a temperature wants to sample.
_CHOOSING = ("top_k", "top_p", "min_p")

_OF_BEAMS = ("length_penalty", "early_stopping")

_GUIDES: dict[str, Callable[[str], Constraint]] = {
    "json": lambda _: Constraint.json_object(),
    "json_schema": Constraint.json_schema,
    "regex": Constraint.regex,
    "lark_grammar": Constraint.grammar,
    "choice": lambda guide: Constraint.choice(_choices(guide)),
}


@dataclass(frozen=True, slots=True)
class TritonRequest:
    """A request, read: what to generate, and which outputs to return.

    ``echoes``: the prompt's text comes before the answer's. ``handover`` is what an ensemble's
    preprocessing says, if the request comes from there.
    """

    prompt: Prompt
    options: SequenceOptions
    beams: BeamParameters | None = None
    streams: bool = False
    echoes: bool = False
    returns_log_probs: bool = False
    returns_num_input_tokens: bool = False
    returns_num_output_tokens: bool = False
    handover: str = ""


class Complete(Protocol):
    """Adds to the options that are given what a model's checkpoint wants; see Model.completed."""

    def __call__(self, options: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """Return all."""
        ...


def read_request(tensors: Mapping[str, Array], complete: Complete) -> TritonRequest:
    """Read a request's tensors, of which any may be missing.

    Raises UserError for values that can't be used, or not together.
    """
    values = _Values(tensors)
    streams = values.flag("stream")
    given = _given_beams(values)
    searches = given.get("num_beams", 1) > 1
    options = complete(_options(values, searches=searches) | given, stream=streams)
    beams = _beams(options, num_return_sequences=given.get("num_beams", 1))
    if beams is None and values.flag("return_log_probs"):
        options["logprobs"] = 0
    if streams and beams is not None:
        raise UserError(
            "stream and beam_width above 1 exclude each other, as the best beam is known at the "
            "end: leave one of them out."
        )
    return TritonRequest(
        prompt=_prompt(values),
        options=cast(SequenceOptions, options),
        beams=beams,
        streams=streams,
        echoes=_echoes(values),
        returns_log_probs=values.flag("return_log_probs"),
        returns_num_input_tokens=values.flag("return_num_input_tokens"),
        returns_num_output_tokens=values.flag("return_num_output_tokens"),
        handover=values.get("handover") or "",
    )


def read_prompt(tensors: Mapping[str, Array]) -> tuple[Prompt, bool]:
    """Of a request's tensors only the prompt, and whether its text comes before the answer's.

    Raises UserError if there is none, or if it can't be used.
    """
    values = _Values(tensors)
    return _prompt(values), _echoes(values)


def decoded(name: str, value: bytes) -> str:
    """A string of the tensor ``name``; raises UserError if it isn't UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} isn't UTF-8 ({error}): encode it so.") from error


class _Values:
    """The tensors' values as Python's: of strings and lists what isn't empty."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors

    def get(self, name: str) -> Any:
        """One value, or None."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if tensor.size != 1:
            raise UserError(f"{name} has {tensor.size} values, but takes one: change its shape.")
        return self._value(name, tensor.flat[0])

    def list(self, name: str) -> list[Any]:
        """All values."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return []
        return [self._value(name, value) for value in tensor.flat]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A truth value."""
        value = self.get(name)
        return default if value is None else bool(value)

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, bytes):
            return decoded(name, value)
        if isinstance(value, np.floating):
            return float(str(value))  # 0.9 as the client wrote it, not its nearest float32
        return value.item() if isinstance(value, np.generic) else value


def _prompt(values: _Values) -> Prompt:
    text, ids = values.get("text_input"), values.list("input_ids")
    if text and ids:
        raise UserError("text_input and input_ids exclude each other: send one of them.")
    if not text and not ids:
        raise UserError("There is no prompt: send text_input or input_ids.")
    return cast(Prompt, text or ids)


def _echoes(values: _Values) -> bool:
    return not values.flag("exclude_input_in_output", default=True)


def _options(values: _Values, *, searches: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for tensor, option in _OPTIONS.items():
        if option in ("stop", "bad_words"):
            value: Any = tuple(filter(None, values.list(tensor))) or None
        else:
            value = values.get(tensor)
        if value is not None and value != "":
            options[option] = value
    most = options.get("max_new_tokens")
    if most is not None and most < 1:
        raise UserError(f"max_tokens is {most}, but must be at least 1: raise it.")
    if searches and options.get("temperature") == 1.0:  # it changes nothing, and clients send it
        del options["temperature"]
    if not searches and any(name in options for name in _CHOOSING):
        options.setdefault("temperature", 1.0)
    if 0 < options.get("temperature", 0.0) < LEAST_TEMPERATURE:
        options["temperature"] = 0.0
    if (constraint := _constraint(values)) is not None:
        options["constraint"] = constraint
    return options


def _given_beams(values: _Values) -> dict[str, Any]:
    """What the request says of a search, as options of Model.generate."""
    width = values.get("beam_width")
    if width is not None and width < 1:
        raise UserError(f"beam_width is {width}, but must be at least 1: raise it.")
    given = {"num_beams": width} | {name: values.get(name) for name in _OF_BEAMS}
    return {name: value for name, value in given.items() if value is not None}


def _beams(options: dict[str, Any], num_return_sequences: int) -> BeamParameters | None:
    """Take out of the options what they say of a search; None if there shall be none."""
    width = options.pop("num_beams", 1)
    others = {name: options.pop(name) for name in _OF_BEAMS if name in options}
    if width == 1:
        return None  # whatever length_penalty says: clients send one without beams, too
    return BeamParameters(width, **others, num_return_sequences=num_return_sequences)


def _constraint(values: _Values) -> Constraint | None:
    kind, guide = values.get("guided_decoding_guide_type"), values.get("guided_decoding_guide")
    if not kind:
        if guide:
            raise UserError(
                f"guided_decoding_guide needs guided_decoding_guide_type, one of {_kinds()}: send "
                "both."
            )
        return None
    if kind not in _GUIDES:
        raise UserError(f"guided_decoding_guide_type is {kind!r}, but must be one of {_kinds()}.")
    if not guide and kind != "json":
        raise UserError(f"guided_decoding_guide is missing, the {kind} to follow: send it.")
    return _GUIDES[kind](guide or "")


def _kinds() -> str:
    return ", ".join(_GUIDES)


def _choices(guide: str) -> list[str]:
    try:
        texts = json.loads(guide)
    except ValueError as error:
        raise UserError(f"guided_decoding_guide is no JSON ({error}): send a list.") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError("guided_decoding_guide is no list of texts: send one, as JSON.")
    return texts
