"""How many tokens a model can take, by its config."""

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from exporter.traits.positions import position_offset

# Config attributes that hold a model's maximum length, most usual first.
_NAMES = (
    "max_position_embeddings",
    "max_target_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
)


# Rotary embeddings whose frequencies change for all positions once a sequence is long enough.
_CHANGING_ROTARY = frozenset({"longrope", "dynamic"})


def longest_sequence(model: PreTrainedModel) -> int | None:
    """Most tokens that ``model`` has positions for; None where its config names no limit.

    A rotary embedding that changes with the length ends before it does: keys in the cache would
    have been rotated by the old frequencies.
    """
    config = model.config.get_text_config(decoder=True)
    limit = _positions(config, ("max_decoder_position_embeddings", *_NAMES))
    # Positions below the offset are never a token's.
    own = [limit - position_offset(model)] if limit is not None else []
    return min([*own, *_rotary_changes(config)], default=None)


def longest_source(model: PreTrainedModel) -> int | None:
    """Most tokens of a source that an encoder-decoder has positions for, None where any number."""
    config = model.config.get_text_config(encoder=True)
    names = ("max_encoder_position_embeddings", "max_source_positions", *_NAMES)
    return _positions(config, names)


def _positions(config: PreTrainedConfig, names: Sequence[str]) -> int | None:
    """The first number of positions that a config has under one of these names."""
    sizes = (getattr(config, name, None) for name in names)
    return next((size for size in sizes if isinstance(size, int)), None)


def _rotary_changes(config: PreTrainedConfig) -> list[int]:
    """Lengths at which a rotary embedding of the model changes its frequencies."""
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in sets
        if rope.get("rope_type") in _CHANGING_ROTARY
    ]
