"""Opening whatever a bundle holds: ``serving.load``."""

import functools
from pathlib import Path
from typing import Any, cast

from serving import loading
from serving.bundle import open_bundle
from serving.encoders.opening import open_encoder
from serving.errors import UserError
from serving.generation import Model

_FOR_ENCODERS = {"target", "threads", "batch_tokens"}
_FOR_OPENING = {"verify", "key_file"}
ENCODER_OPTIONS = _FOR_ENCODERS | _FOR_OPENING
"""The parameters of load_encoder."""


@functools.wraps(loading.load)
def load(bundle: str | Path, **options: Any) -> Model:
    """Open a bundle: loading.load for decoders; an encoder's gives an EncoderModel.

    Type checkers know that by its own function, load_encoder.
    """
    opened = open_bundle(bundle, options.get("verify", True), options.get("key_file"))
    if opened.manifest.encoder is None:
        return loading.load(opened, **options)
    options = {name: value for name, value in options.items() if name not in _FOR_OPENING}
    given = {name: value for name, value in options.items() if value is not None}
    if others := sorted(given.keys() - _FOR_ENCODERS):
        raise UserError(f"{others[0]} is for models that generate text: leave it out.")
    return cast(Model, open_encoder(opened, **given))
