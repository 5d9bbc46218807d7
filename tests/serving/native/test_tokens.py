"""The native runtime gives the tokens of the Python runtime and of transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import serving
from engines.quantization.recipe import Recipe
from serving import kernels
from tests.exports import export_bundle, once
from tests.serving.native.building import run

PROMPTS = [[5, 9, 301, 44, 17, 300, 211, 8, 3, 99, 120, 7], [42, 43], [77, 15, 400, 2, 6, 31, 250]]
NEW = 24
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 5}

# Name of the bundle -> its checkpoint and how it is exported. Those of other tests are made once:
# one with windows, and a trained one. Then learned positions and a soft cap; integer weights.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_window-float32": ("qwen2_window", {}),
    "trained/float32": ("trained", {}),
    "gpt2-float32": ("gpt2", {}),
    "gemma2-float32": ("gemma2", {}),
    "native/llama-int8": ("llama", {"recipe": Recipe(bits=8)}),
    "native/llama-int4": ("llama", {"recipe": Recipe(bits=4)}),
}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    trained_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """A checkpoint and its bundle."""
    name, options = CASES[request.param]
    source = trained_checkpoint if name == "trained" else checkpoint(name)
    return source, once(
        tmp_path_factory, request.param, lambda path: export_bundle(source, path, **options)
    )


def generated(bundle: Path, runtime: Any, **options: Any) -> list[list[int]]:
    with serving.load(bundle, runtime=runtime, capacity=64, slots=2, threads=1) as model:
        results = model.generate(PROMPTS, max_new_tokens=NEW, ignore_eos=True, **options)
        return [result.token_ids for result in results]


def from_command(prefix: Path, bundle: Path, prompt: list[int], **options: Any) -> list[int]:
    """What llm-run generates, with the kernels that Python uses."""
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = run(
        *(prefix / "bin" / "llm-run", bundle, "--ids", ",".join(map(str, prompt))),
        *("--max-new-tokens", NEW, "--ignore-eos", "--json", "--threads", 1),
        *("--kernels", kernels.library() or "", "--capacity", 64, *arguments),
    )
    assert done.returncode == 0, done.stderr
    tokens: list[int] = json.loads(done.stdout)["token_ids"]
    return tokens


@torch.no_grad()
def test_greedy_tokens(prefix: Path, case: tuple[Path, Path]) -> None:
    source, bundle = case
    expected = generated(bundle, "python")
    assert len({token for row in expected for token in row}) > 5, "they repeat themselves"
    assert generated(bundle, "native") == expected
    assert from_command(prefix, bundle, PROMPTS[0]) == expected[0]
    if json.loads((bundle / "bundle.json").read_text())["graph"]["integer_weights"]:
        return
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits
        assert logits[0, len(prompt) - 1 :].argmax(-1).tolist() == tokens


def test_sampled_tokens(prefix: Path, case: tuple[Path, Path]) -> None:
    _, bundle = case
    expected = generated(bundle, "python", **SAMPLED)
    assert generated(bundle, "native", **SAMPLED) == expected
    options = {name.replace("_", "-"): value for name, value in SAMPLED.items()}
    assert from_command(prefix, bundle, PROMPTS[0], **options) == expected[0]
