"""The acceptance matrix: every architecture, exported and served, says what transformers says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import serving
from serving.bundle import open_bundle
from serving.loading import DEFAULT_CAPACITY
from tests.checkpoints import ARCHITECTURES, VOCABULARY, WINDOW, make_checkpoint
from tests.exports import export_bundle

NEW_TOKENS = 128
LENGTHS = (21, 9, 34)  # all longer than the window
MOST = DEFAULT_CAPACITY + 904  # positions of the checkpoints here
# None is the default; the others are just enough for these sequences, and more than the default.
CAPACITIES = (None, max(LENGTHS) + NEW_TOKENS, MOST)
# What configs call their number of positions.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def most_positions(architecture: str) -> dict[str, Any]:
    """The override that gives an architecture ``MOST`` positions."""
    config = ARCHITECTURES[architecture][1]
    # bloom has no limit: any config may name one as seq_length.
    return {next((name for name in POSITIONS if name in config), "seq_length"): MOST}


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
def test_greedy_tokens_equal_transformers(architecture: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(
        architecture, tmp_path / "checkpoint", **most_positions(architecture)
    )
    bundle = export_bundle(checkpoint, tmp_path / "bundle")
    assert open_bundle(bundle).manifest.parity["embeddings"] is not None, "they were not compared"
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
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
