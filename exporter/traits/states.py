"""State that is not keys and values: why a model that keeps some is refused."""

from transformers.cache_utils import LinearAttentionCacheLayerMixin

RECURRENT = (
    "it has layers with a recurrent state (state-space, linear attention or convolution), and only "
    "keys and values can be kept from step to step"
)
INDEXED = (
    "its layers choose the tokens they attend to with an index of their own (sparse attention), "
    "which keeps more than keys and values"
)
# Part of the name of a cache layer's class -> why it can't be exported.
_REASONS = {"Linear": RECURRENT, "Recurrent": RECURRENT, "Conv": RECURRENT, "Index": INDEXED}
# Names under which models return a recurrent state.
_RECURRENT_OUTPUTS = ("cache_params", "state", "ssm_state")


def why_not_keys_and_values(layer: object) -> str:
    """Why the state of a cache layer can't be kept, as a clause."""
    name = type(layer).__name__
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return RECURRENT
    known = next((reason for part, reason in _REASONS.items() if part in name), None)
    return known or f"a layer keeps state of its own ({name}), and not keys and values alone"


def why_no_cache(output: object) -> str:
    """Why the output of a model that has no cache can't be worked with, as a clause."""
    if any(getattr(output, name, None) is not None for name in _RECURRENT_OUTPUTS):
        return RECURRENT
    return "it keeps no key-value cache that transformers manages, so it can't be decoded in steps"
