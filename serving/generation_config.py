"""What a checkpoint's generation_config.json says of how its outputs are to be made."""

import json
from collections.abc import Mapping
from typing import Any

from serving.bundle import Bundle

# Names that are options of Model.generate as they are.
_SAME = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
_CHOOSING = ("top_k", "top_p", "min_p")
_OF_BEAMS = ("length_penalty", "early_stopping")


def generation_defaults(bundle: Bundle) -> dict[str, Any]:
    """Options of Model.generate for an encoder-decoder; {} if there is no such file.

    ``max_length`` and ``min_length`` count the token that an output goes on from.
    """
    file = bundle.file("generation_config.json")
    config = json.loads(file.read_text("utf-8")) if file else {}
    options = {name: config[name] for name in _SAME if config.get(name) is not None}
    for name, bound in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if config.get(name) is not None:
            options[name] = config[name]
        elif config.get(bound):
            options[name] = config[bound] - 1
    if options.get("num_beams", 1) == 1:
        options = {name: value for name, value in options.items() if name not in _OF_BEAMS}
    return options


def with_defaults(
    given: Mapping[str, Any], defaults: Mapping[str, Any], most_new_tokens: int, *, stream: bool
) -> dict[str, Any]:
    """The options ``given``, and of the ``defaults`` those that go with them.

    Values of None are as if they weren't given. What is given rules: without ``num_beams`` there is
    no search where sampling, a stop string or something else is asked for that excludes one, or a
    ``stream``; and default lengths yield to given ones, and to ``most_new_tokens``, which fit. Who
    asks for one of top_k, top_p and min_p without a temperature wants to sample with 1.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if any(name in given for name in _CHOOSING):
        given.setdefault("temperature", 1.0)
    options = {**defaults, **given}
    if "num_beams" not in given and (stream or _excludes_search(given)):
        options["num_beams"] = 1
    if options.get("num_beams", 1) == 1:
        options = {
            name: value for name, value in options.items() if name in given or name not in _OF_BEAMS
        }
    if "max_new_tokens" not in given and "max_new_tokens" in options:
        wanted = max(options["max_new_tokens"], given.get("min_new_tokens", 0))
        options["max_new_tokens"] = max(1, min(wanted, most_new_tokens))
    if "min_new_tokens" not in given and "min_new_tokens" in options:
        most = options.get("max_new_tokens", most_new_tokens)
        options["min_new_tokens"] = min(options["min_new_tokens"], most)
    return options


def _excludes_search(given: Mapping[str, Any]) -> bool:
    """Whether options ask for what beam_search.check_search refuses."""
    asked = ("stop", "speculation", "constraint")
    return (
        given.get("temperature", 0) > 0
        or "logprobs" in given
        or given.get("context_overflow") == "slide"
        or any(given.get(name) for name in asked)
    )
