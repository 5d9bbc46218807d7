"""The part of the parity gate that is about embeddings: last hidden states against transformers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingParity:
    """Differences of last hidden states over all positions of the prompts, and what is allowed."""

    positions: int
    largest: float
    max_error: float
    mean_error: float
    tolerance_max: float
    tolerance_mean: float

    @property
    def passed(self) -> bool:
        """Whether the engine may be served."""
        return self.max_error <= self.tolerance_max and self.mean_error <= self.tolerance_mean


def compare_embeddings(
    ours: Sequence[Floats],
    references: Sequence[Floats],
    *,
    shares: tuple[float, float],
    rounding: float | None,
) -> EmbeddingParity:
    """Compare hidden states [positions, hidden] of each prompt with those of transformers.

    The largest and the mean difference may be ``shares`` of the largest value in float32. Else
    ``rounding`` is the largest difference that the lower precision makes in transformers itself.
    """
    reference = np.concatenate(references)
    error = np.abs(np.concatenate(ours) - reference)
    largest = float(np.abs(reference).max())
    limit, mean_limit = (share * largest for share in shares)
    if rounding is not None:
        limit, mean_limit = 4 * rounding, rounding
    # A NaN compares as no breach, so it is made the largest one.
    worst = float(error.max()) if np.isfinite(error).all() else float("inf")
    mean = float(error.mean(dtype=np.float64)) if np.isfinite(worst) else worst
    return EmbeddingParity(len(reference), largest, worst, mean, limit, mean_limit)


def reference_inputs(
    model: PreTrainedModel, tokens: Sequence[int], source: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """Inputs of one pass of ``model``; an encoder-decoder's tokens come behind a source."""
    ids = torch.tensor([list(tokens)], device=model.device)
    if source is None:
        return {"input_ids": ids}
    source_ids = torch.tensor([list(source)], device=model.device)
    mask = torch.ones_like(source_ids)
    return {"input_ids": source_ids, "attention_mask": mask, "decoder_input_ids": ids}


def reference_embeddings(
    model: PreTrainedModel, tokens: Sequence[int], source: Sequence[int] | None = None
) -> Floats:
    """What the head of ``model`` gets for every position, float32 [positions, hidden]."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            model(**reference_inputs(model, tokens, source), use_cache=False, return_dict=True)
    finally:
        handle.remove()
    states: Floats = seen[0][0].float().cpu().numpy()
    return states
