"""The options of a generation, from what a request says and what the model's bundle does."""

from typing import Any, cast

from serving.constraints import Constraint
from serving.http.errors import invalid
from serving.http.schemas.common import GenerationRequest
from serving.http.served_model import ServedModel
from serving.sampling import LEAST_TEMPERATURE
from serving.sequences import SequenceOptions

# Parameters that have the same name and meaning in a request and in Model.sequence.
_SAME = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "ignore_eos",
    "speculation",
    "context_overflow",
)
# Seeds are of 64 bits; OpenAI's may be negative.
SEEDS = 2**64


def generate_options(
    body: GenerationRequest,
    model: ServedModel,
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None = None,
) -> SequenceOptions:
    """What the worker gets; raises ApiError for options that don't fit together."""
    options: dict[str, Any] = dict(model.sampling)
    options |= {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    options |= {"max_new_tokens": max_new_tokens, "logprobs": logprobs}
    if options.get("temperature", 1.0) < LEAST_TEMPERATURE:
        options["temperature"] = 0.0
    if body.seed is not None:
        options["seed"] = body.seed % SEEDS
    if body.stop:
        options["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.speculation == "draft" and not model.has_draft:
        raise invalid("speculation", "This server has no draft model: take 'prompt-lookup'.")
    if body.min_tokens is not None:
        if max_new_tokens is not None and body.min_tokens > max_new_tokens:
            raise invalid("min_tokens", "'min_tokens' must not be above the most tokens asked for.")
        options["min_new_tokens"] = body.min_tokens
    if body.logit_bias:
        options["logit_bias"] = _logit_bias(body.logit_bias, model.prompts.vocab_size)
    if constraint is not None:
        options["constraint"] = constraint
    if model.adapter is not None:
        options["adapter"] = model.adapter
    return cast(SequenceOptions, options)


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {int(token_id): value for token_id, value in given.items()}
    for token_id in bias:
        if token_id >= vocab_size:
            raise invalid(
                "logit_bias",
                f"'logit_bias' has the token id {token_id}, but this model's ids go from 0 to "
                f"{vocab_size - 1}.",
            )
    return bias
