"""Whether a model computes what the checkpoint says: its logits and greedy tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.peers.measuring import Prompts
from scripts.peers.remote import Worker

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 40, 16

# Of the reference's largest logit. llama.cpp's flash attention and its GELU are float16 inside and
# give 2e-3 and 5e-4, all else 1e-5; a wrong model gives more than 1e-1.
FLOAT32_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Reference:
    """A prompt, and what transformers makes of it in float32."""

    prompt: list[int]
    logits: npt.NDArray[np.float64]
    tokens: list[int]


def references(worker: Worker, prompts: Prompts) -> list[Reference]:
    """Ask the reference."""
    chosen = [prompts.next(PROMPT_TOKENS) for _ in range(PROMPTS)]
    return [
        Reference(
            prompt,
            np.array(worker.logits(prompt)),
            worker.generate(prompt, NEW_TOKENS)["tokens"],
        )
        for prompt in chosen
    ]


def agreement(worker: Worker, expected: list[Reference]) -> dict[str, Any]:
    """Compare a model with the reference.

    ``logit_difference`` is the largest, as a fraction of the reference's largest logit, and
    ``logit_correlation`` the least; both are None where the logits are hidden. ``equal_tokens`` is
    how many greedy tokens are equal before the first that isn't, the fewest of all prompts.
    """
    differences, correlations, equal = [], [], []
    for reference in expected:
        tokens = worker.generate(reference.prompt, NEW_TOKENS)["tokens"]
        same = [a == b for a, b in zip(tokens, reference.tokens, strict=True)]
        equal.append(same.index(False) if False in same else NEW_TOKENS)
        if (logits := worker.logits(reference.prompt)) is None:
            continue
        actual = np.array(logits)[: len(reference.logits)]
        difference = np.abs(actual - reference.logits).max() / np.abs(reference.logits).max()
        differences.append(float(difference))
        correlations.append(float(np.corrcoef(actual, reference.logits)[0, 1]))
    return {
        "logit_difference": max(differences, default=None),
        "logit_correlation": min(correlations, default=None),
        "equal_tokens": min(equal),
    }


def disagreement(found: dict[str, Any]) -> str | None:
    """Say in which way a float32 model is not the checkpoint's, or return None if it is."""
    if found["logit_difference"] is None:
        if found["equal_tokens"] == 0:
            return "its first greedy token is not transformers'"
    elif not found["logit_difference"] < FLOAT32_TOLERANCE:
        return f"its logits differ from transformers' by {found['logit_difference']:.1g}"
    return None
