"""What a checkpoint's generation_config.json says of how its outputs are to be made."""

import json
from typing import Any

from serving.bundle import Bundle

# Names that are options of Model.generate as they are.
_SAME = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
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
