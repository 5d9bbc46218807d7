"""Sampling parameters as the device reads them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.sampling import SamplingParameters

# The fields of Parameters in sampling.cu.
ROW = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("beyond_top_p", np.float32),
        ("min_p", np.float32),
        ("seed", np.uint64),
        ("chosen", np.uint64),
    ]
)
Rows = npt.NDArray[np.void]


def runs_on_device(
    parameters: SamplingParameters, min_new_tokens: int = 0, is_constrained: bool = False
) -> bool:
    """Whether the device can choose a sequence's tokens; if not, ``serving.sampling`` does.

    Penalties and bad words need the tokens so far, log-probabilities the logits, and
    ``min_new_tokens``, a bias and a constraint change them: the device has none of these.
    """
    return (
        parameters.repetition_penalty == 1
        and parameters.presence_penalty == 0
        and parameters.frequency_penalty == 0
        and parameters.logprobs is None
        and not parameters.logit_bias
        and parameters.bad_words is None
        and parameters.no_repeat_ngram_size == 0
        and min_new_tokens == 0
        and not is_constrained
    )


def device_rows(
    parameters: Sequence[SamplingParameters], seeds: Sequence[int], chosen: Sequence[int]
) -> Rows:
    """Return [n] rows of ROW: one for each sequence, with its ``choice_seed``.

    ``chosen`` is how many tokens it has so far. The noise is a function of the seed, that
    number and the token id, so it depends on nothing else in the batch.
    """
    rows = np.zeros(len(parameters), ROW)
    rows["temperature"] = [p.temperature for p in parameters]
    rows["top_k"] = [min(p.top_k, np.iinfo(np.int32).max) for p in parameters]
    rows["beyond_top_p"] = [1 - p.top_p for p in parameters]
    rows["min_p"] = [p.min_p for p in parameters]
    rows["seed"] = seeds
    rows["chosen"] = chosen
    return rows
