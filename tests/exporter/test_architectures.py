"""The acceptance matrix: every architecture, exported and served, says what transformers says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import serving
from serving.bundle import open_bundle
from serving.loading import DEFAULT_CAPACITY
from tests.checkpoints import ARCHITECTURES, POSITIONS, VOCABULARY, WINDOW
from tests.exports import export_bundle

NEW_TOKENS = 128
LENGTHS = (21, 9, 34)  # all longer than the window
# None is the default; the others are just enough for these sequences, and more than the default.
CAPACITIES = (None, max(LENGTHS) + NEW_TOKENS, POSITIONS)


def ragged_prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(3, VOCABULARY, length).tolist() for length in LENGTHS]


def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What transformers generates from one prompt alone."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


def first_difference(
    model: PreTrainedModel, prompt: list[int], expected: list[int], got: list[int]
) -> str:
    """Where two continuations part, and how close a choice that was for the reference."""
    step = next(i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1])
    with torch.no_grad():
        logits = model(torch.tensor([prompt + expected[:step]])).logits[0, -1]
    margin = float(logits[expected[step]] - logits[got[step]])
    return f"token {step} is {got[step]} instead of {expected[step]}, preferred by {margin:.2g}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_equal_transformers(
    architecture: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = checkpoint(architecture)
    bundle = export_bundle(source, tmp_path / "bundle")
    assert open_bundle(bundle).manifest.parity["embeddings"] is not None, "they were not compared"
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    prompts = ragged_prompts()
    expected = [greedy(reference, prompt) for prompt in prompts]
    assert min(LENGTHS) > WINDOW
    for capacity in CAPACITIES:
        with serving.load(bundle, capacity=capacity, threads=1) as model:
            assert model.engine.cache.capacity == (capacity or DEFAULT_CAPACITY)
            results = model.generate(prompts, max_new_tokens=NEW_TOKENS)
        for prompt, tokens, result in zip(prompts, expected, results, strict=True):
            assert len(tokens) == NEW_TOKENS
            if result.token_ids != tokens:
                where = first_difference(reference, prompt, tokens, result.token_ids)
                pytest.fail(f"with capacity {capacity} and {len(prompt)} tokens of prompt: {where}")
