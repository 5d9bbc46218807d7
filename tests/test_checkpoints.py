"""The tiny checkpoints must be worth testing with: valid, repeatable, and sensitive."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.checkpoints import ARCHITECTURES, VOCABULARY, WINDOW, make_checkpoint, tokenizer

PROMPT_LENGTH = 3 * WINDOW
WINDOWED = ["qwen2_window", "mistral", "gemma2", "gemma3", "gpt_oss"]


def load(directory: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def prompts() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (3, PROMPT_LENGTH), generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_lively(architecture: str, checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint(architecture))
    tokens = prompts()
    logits = model(tokens).logits
    assert logits.isfinite().all()
    assert 1 < logits.std() < 4

    # Order matters, near the end and far from it; so does content, even 13 tokens back.
    for first, second in [(-3, -2), (-14, -7)]:
        swapped = tokens.clone()
        swapped[:, [first, second]] = tokens[:, [second, first]]
        assert (model(swapped).logits[:, -1] - logits[:, -1]).abs().max() > 0.1

    generated = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=128, do_sample=False
    )[:, PROMPT_LENGTH:]
    assert generated.shape[1] == 128
    distinct = [len(row.unique()) for row in generated]
    assert sorted(distinct)[1] >= 10, distinct


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_every_parameter_matters(architecture: str, checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint(architecture))
    tokens = prompts()
    logits = model(tokens).logits
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):
            # Without rotation it adds the same to all scores of a query: softmax is blind to it.
            continue
        kept = parameter.clone()
        neutral = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        parameter.fill_(neutral)
        difference = (model(tokens).logits - logits).abs().max()
        parameter.copy_(kept)
        assert difference > 0.01, f"{name} changes the logits by {difference:.1e}"


@pytest.mark.parametrize("architecture", WINDOWED)
@torch.no_grad()
def test_windows_matter(
    architecture: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    windowed = load(checkpoint(architecture))
    full = load(make_checkpoint(architecture, tmp_path, sliding_window=512))
    assert all(map(torch.equal, windowed.parameters(), full.parameters()))
    if architecture != "mistral":  # the one whose layers are all windowed
        assert len(set(windowed.config.layer_types)) == 2
    difference = (windowed(prompts()).logits - full(prompts()).logits).abs().amax(dim=(0, 2))
    assert difference[:WINDOW].max() < 1e-4
    assert difference[WINDOW:].min() > 0.01


def test_deterministic(tmp_path: Path) -> None:
    first = make_checkpoint("llama", tmp_path / "first")
    second = make_checkpoint("llama", tmp_path / "second")
    other = make_checkpoint("llama", tmp_path / "other", seed=1)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    weights = "model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


def test_overrides(tmp_path: Path) -> None:
    model = load(make_checkpoint("gpt2", tmp_path, num_hidden_layers=3, eos_token_id=7))
    assert model.config.n_layer == 3
    assert model.generation_config.eos_token_id == 7


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma"])
def test_tokenizer(architecture: str, checkpoint: Callable[[str], Path]) -> None:
    text = "def naïve():\n    return '你好 🙂'  # twice  spaced"
    loaded = AutoTokenizer.from_pretrained(checkpoint(architecture))
    assert len(loaded) == VOCABULARY
    assert loaded(text).input_ids == tokenizer()(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
    chat = loaded.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
