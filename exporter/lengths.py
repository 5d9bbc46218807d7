"""How many tokens a model can take, by its config."""

from transformers import PreTrainedModel

from exporter.traits.positions import position_offset

# Config attributes that hold a model's maximum length, most usual first.
_NAMES = (
    "max_position_embeddings",
    "max_target_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
)


def longest_sequence(model: PreTrainedModel) -> int | None:
    """Most tokens that ``model`` has positions for; None where its config names no limit."""
    config = model.config.get_text_config(decoder=True)
    sizes = (getattr(config, name, None) for name in _NAMES)
    limit = next((size for size in sizes if isinstance(size, int)), None)
    # Positions below the offset are never a token's.
    return limit - position_offset(model) if limit is not None else None
