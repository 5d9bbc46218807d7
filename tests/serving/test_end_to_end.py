"""A real checkpoint, exported and served: tokens, texts, memory and damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import serving
from serving import Model, UserError
from serving.chat import Message
from serving.decoding import SpeculationMethod
from tests.exports import export_bundle, once
from tests.serving.fixed_costs import FixedCosts

LENGTH = 1200
PROMPTS = [[5, 9, 301, 44, 17, 300, 211, 8, 3, 99, 120, 7], [42, 43], [77, 15, 400, 2, 6, 31, 250]]


@pytest.fixture(scope="module")
def checkpoint(checkpoint: Callable[[str], Path]) -> Path:
    """Grouped queries, and a layer with a window smaller than any text here."""
    return checkpoint("qwen2_window")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    def make(path: Path) -> None:
        export_bundle(checkpoint, path)

    return once(tmp_path_factory, "qwen2_window-float32", make)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(checkpoint)
    return model.eval()


def greedy(
    reference: torch.nn.Module, ids: list[int], new: int, bad_words: list[list[int]] | None = None
) -> list[int]:
    inputs = torch.tensor([ids])
    output = reference.generate(  # type: ignore[operator]
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        bad_words_ids=bad_words,
    )
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


Options = dict[str, int]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"slots": 2, "prefill_chunk": 5},
        {"slots": 1, "capacity": 140, "prefill_chunk": 1},
        {"capacity": LENGTH, "threads": 1},
    ],
)
def test_greedy_tokens_equal_transformers(
    bundle: Path, reference: torch.nn.Module, options: Options
) -> None:
    with serving.load(bundle, **options) as model:  # type: ignore[arg-type]
        results = model.generate(PROMPTS, max_new_tokens=128, ignore_eos=True)
    for ids, result in zip(PROMPTS, results, strict=True):
        assert result.token_ids == greedy(reference, ids, 128)


@pytest.mark.parametrize(("method", "slots"), [("prompt-lookup", 1), ("draft", 1), ("draft", 3)])
def test_greedy_tokens_with_speculation_equal_transformers(
    bundle: Path, reference: torch.nn.Module, method: SpeculationMethod, slots: int
) -> None:
    with serving.load(bundle, slots=slots, draft=bundle) as model:
        model._step_costs = FixedCosts(0.0)
        tokens = list(
            model.generate(
                PROMPTS, max_new_tokens=128, ignore_eos=True, speculation=method, stream=True
            )
        )
    # Look-up is often wrong about random weights; the model itself is always right.
    drafted, accepted = (sum(t.drafted for t in tokens), sum(t.speculated for t in tokens))
    if method == "prompt-lookup":
        assert drafted > accepted
    else:
        assert drafted == accepted > (200 if slots == 1 else 0)
    for index, ids in enumerate(PROMPTS):
        own = [token.token_id for token in tokens if token.index == index]
        assert own == greedy(reference, ids, 128)


def test_bad_words_equal_transformers(bundle: Path, reference: torch.nn.Module) -> None:
    ids = PROMPTS[0]
    plain = greedy(reference, ids, 32)
    bad_words = [[*ids[-2:], plain[0]], [plain[4]], plain[9:11], plain[20:23], [5, 6, 7]]
    expected = greedy(reference, ids, 32, bad_words)
    assert expected[0] != plain[0], "the first word begins in the prompt"
    with serving.load(bundle, draft=bundle) as model:
        model._step_costs = FixedCosts(0.0)
        for method in (None, "prompt-lookup", "draft"):
            result = model.generate(
                ids,
                max_new_tokens=32,
                ignore_eos=True,
                bad_words_ids=bad_words,
                speculation=method,  # type: ignore[arg-type]
            )
            assert result.token_ids == expected


def test_logits_equal_transformers(bundle: Path, reference: torch.nn.Module) -> None:
    ids = PROMPTS[0] * 5
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    for chunk in (512, 7):
        with serving.load(bundle, prefill_chunk=chunk) as model:
            np.testing.assert_allclose(model.logits(ids), expected, atol=1e-4)


def test_text_is_what_transformers_decodes(bundle: Path, checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with serving.load(bundle) as model:
        for prompt in ("Hello there, ", "def main(", "the"):
            assert model.encode(prompt) == tokenizer(prompt)["input_ids"]
            result = model.generate(prompt, max_new_tokens=60, ignore_eos=True)
            pieces = model.generate(prompt, max_new_tokens=60, ignore_eos=True, stream=True)
            decoded = tokenizer.decode(result.token_ids, skip_special_tokens=True)
            assert result.text == decoded == "".join(token.text for token in pieces)


def test_chats_are_encoded_as_transformers_does(bundle: Path, checkpoint: Path) -> None:
    messages: list[Message] = [{"role": "user", "content": "Hello!"}]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with serving.load(bundle) as model:
        assert model.encode_chat(messages) == expected


def addresses(model: Model) -> list[int]:
    return [buffer.address for buffer in model.engine.cache.buffers.values()]


def test_kv_memory_and_addresses_stay_during_1000_tokens(bundle: Path) -> None:
    with serving.load(bundle, capacity=LENGTH) as model:
        before, size = addresses(model), model.engine.cache.nbytes
        model.generate(PROMPTS, max_new_tokens=1000, ignore_eos=True)
        memory = psutil.Process().memory_info().rss
        results = model.generate(PROMPTS, max_new_tokens=1000, ignore_eos=True)
        assert psutil.Process().memory_info().rss - memory < 2e6
        assert (addresses(model), model.engine.cache.nbytes) == (before, size)
        assert all(len(result.token_ids) == 1000 for result in results)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_newer(path: Path) -> None:
    text = path.read_text().replace('"format_version": 1', '"format_version": 2')
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.onnx", flip, "checksum differs"),
        ("model.onnx.data", flip, "checksum differs"),
        ("tokenizer.json", flip, "checksum differs"),
        ("model.onnx.data", Path.unlink, "lacks its file"),
        ("bundle.json", make_newer, "newer export-llm"),
    ],
)
def test_damage_is_one_sentence(
    bundle: Path, tmp_path: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    damage(copy / file)
    with pytest.raises(UserError, match=message):
        serving.load(copy)
