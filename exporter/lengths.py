"""How many tokens a model can take, by its config."""

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
    sizes = (getattr(config, name, None) for name in _NAMES)
    limit = next((size for size in sizes if isinstance(size, int)), None)
    # Positions below the offset are never a token's.
    own = [limit - position_offset(model)] if limit is not None else []
    return min([*own, *_rotary_changes(config)], default=None)


def _rotary_changes(config: PreTrainedConfig) -> list[int]:
    """Lengths at which a rotary embedding of the model changes its frequencies."""
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in sets
        if rope.get("rope_type") in _CHANGING_ROTARY
    ]
