"""Embeddings against transformers' last hidden states, and what can't be embedded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

import serving
from serving import UserError
from serving.bundle import SpecialTokens, open_bundle
from serving.cli import main
from serving.decoding import Token
from serving.embedding import Embedded, Pooling
from serving.generation import Model
from serving.request_queue import Job
from tests.exports import export_bundle, once
from tests.serving.counting_engine import CountingEngine
from tests.serving.tiny_bundle import make_bundle

POOLINGS: tuple[Pooling, ...] = ("last", "mean")
TEXTS = ["def größe(self):", "import os", "class Parser:\n    '''Reads text.'''\n" * 3]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    def make(path: Path) -> None:
        export_bundle(checkpoint("qwen2_window"), path)

    return once(tmp_path_factory, "qwen2_window-float32", make)


@pytest.fixture(scope="module")
def half_bundle(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Path:
    def make(path: Path) -> None:
        export_bundle(checkpoint("qwen2"), path, dtype="float16")

    return once(tmp_path_factory, "qwen2-float16", make)


def pooled(
    checkpoint: Path, token_ids: list[list[int]], pooling: str, *, normalize: bool = True
) -> np.ndarray:
    """Vectors [n, hidden] by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    vectors = []
    for ids in token_ids:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states = output.hidden_states[-1][0]
        vector = states[-1] if pooling == "last" else states.mean(0)
        vectors.append((vector / vector.norm() if normalize else vector).numpy())
    return np.stack(vectors)


def test_embedded_prompts_and_streams_share_an_engine(bundle: Path) -> None:
    """Beside each other, with kept prefixes, both get what they get alone."""
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    with serving.load(bundle, slots=2, prefix_rows=2, prefill_chunk=5) as model:
        texts = {pooling: model.embed(TEXTS, pooling=pooling).vectors for pooling in POOLINGS}
        answers = [model.generate(text, **options).token_ids for text in TEXTS]
        scheduler = model.scheduler()
        for at, text in enumerate(TEXTS):
            scheduler.submit(Job(model.sequence(text, at, **options)))
            for shift, pooling in enumerate(POOLINGS, 1):
                prompt = model.embedded_prompt(text, at + 10 * shift, pooling=pooling)
                scheduler.submit(Job(prompt))
        outcomes = list(scheduler.run())
    for at, answer in enumerate(answers):
        own = [o.token_id for o in outcomes if isinstance(o, Token) and o.index == at]
        assert own == answer
    vectors = {o.index: o.vector for o in outcomes if isinstance(o, Embedded)}
    for shift, pooling in enumerate(POOLINGS, 1):
        for at in range(len(TEXTS)):
            np.testing.assert_allclose(vectors[at + 10 * shift], texts[pooling][at], atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("chunk", [512, 5])
def test_embeddings_equal_transformers(
    bundle: Path, checkpoint: Callable[[str], Path], pooling: Any, chunk: int
) -> None:
    """Prompts longer than a chunk come out as in one piece."""
    with serving.load(bundle, prefill_chunk=chunk) as model:
        result = model.embed(TEXTS, pooling=pooling)
        ids = [model.encode(text) for text in TEXTS]
    assert max(map(len, ids)) > 15
    expected = pooled(checkpoint("qwen2_window"), ids, pooling)
    assert result.vectors.dtype == np.float32
    np.testing.assert_allclose(result.vectors, expected, atol=1e-5)
    assert result.prompt_tokens == [len(each) for each in ids]
    assert result.truncated == [False] * len(TEXTS)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_half_precision_is_near(
    half_bundle: Path, checkpoint: Callable[[str], Path], pooling: Any
) -> None:
    with serving.load(half_bundle) as model:
        vectors = model.embed(TEXTS, pooling=pooling).vectors
        ids = [model.encode(text) for text in TEXTS]
    np.testing.assert_allclose(vectors, pooled(checkpoint("qwen2"), ids, pooling), atol=2e-3)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_without_normalisation_vectors_keep_their_length(
    bundle: Path, checkpoint: Callable[[str], Path], pooling: Any
) -> None:
    with serving.load(bundle, prefill_chunk=5) as model:
        vectors = model.embed(TEXTS, pooling=pooling, normalize=False).vectors
        ids = [model.encode(text) for text in TEXTS]
    expected = pooled(checkpoint("qwen2_window"), ids, pooling, normalize=False)
    assert np.linalg.norm(expected, axis=1).min() > 2
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_texts_and_ids_give_the_same(bundle: Path) -> None:
    with serving.load(bundle) as model:
        alone = model.embed(TEXTS[0]).vectors
        by_ids = model.embed(model.encode(TEXTS[0])).vectors
        together = model.embed([model.encode(text) for text in TEXTS]).vectors
    assert alone.shape == (1, 64)
    assert alone.tolist() == by_ids.tolist() == together[:1].tolist()


def test_embedding_and_generating_leave_each_other_alone(bundle: Path) -> None:
    """Outputs of both are bound to memory of their own, whatever ran before."""
    with serving.load(bundle, slots=2) as model:
        tokens = model.generate(TEXTS, max_new_tokens=8)
        vectors = model.embed(TEXTS).vectors
        kept = vectors.copy()
        assert model.generate(TEXTS, max_new_tokens=8) == tokens
        assert model.embed(TEXTS).vectors.tolist() == kept.tolist() == vectors.tolist()


def test_a_long_text_is_refused_or_cut(bundle: Path) -> None:
    with serving.load(bundle, capacity=10) as model:
        ids = model.encode(TEXTS[2])
        with pytest.raises(UserError, match=f"{len(ids)} tokens don't fit into a context of 10"):
            model.embed(TEXTS[1:])
        cut = model.embed(TEXTS[1:], context_overflow="truncate")
        beginning = model.embed(ids[:10])
        with pytest.raises(UserError, match="must be 'refuse' or 'truncate'"):
            model.embed(TEXTS, context_overflow="slide")
    assert cut.truncated == [False, True]
    assert cut.prompt_tokens[1] == 10
    assert cut.vectors[1].tolist() == beginning.vectors[0].tolist()


def test_the_manifest_says_how_wide_they_are_and_what_was_checked(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.graph.hidden_size == 64
    assert manifest.parity["embeddings"]["positions"] == 23 + 9 + 16
    assert "64 numbers" in CliRunner().invoke(main, ["inspect", str(bundle)]).output


def test_an_older_bundle_opens_and_says_what_to_do(tmp_path: Path) -> None:
    with serving.load(make_bundle(tmp_path / "bundle")) as model:
        model.generate("hello", max_new_tokens=2)
        with pytest.raises(UserError, match="export the model again"):
            model.embed("hello")


def test_an_engine_without_embeddings_says_so() -> None:
    with pytest.raises(UserError, match="gives no embeddings"):
        Model(CountingEngine(), SpecialTokens()).embed([1, 2])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "There is no prompt"),
        ("", {}, "The prompt is empty"),
        ([[1, 512]], {}, "token id 512"),
        ("text", {"pooling": "max"}, "pooling is 'max', but must be 'last' or 'mean'"),
    ],
)
def test_what_cannot_be_embedded(
    bundle: Path, prompts: Any, options: dict[str, Any], message: str
) -> None:
    with serving.load(bundle) as model, pytest.raises(UserError, match=message):
        model.embed(prompts, **options)


def run(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["embed", *map(str, arguments)], input=stdin)


def test_the_command_prints_json(bundle: Path) -> None:
    result = run(bundle, *TEXTS, "--json", "--pooling", "mean", "--no-normalize")
    assert result.exit_code == 0, result.output
    with serving.load(bundle) as model:
        expected = model.embed(TEXTS, pooling="mean", normalize=False)
    documents = json.loads(result.stdout)
    assert [each["embedding"] for each in documents] == expected.vectors.tolist()
    assert [each["prompt_tokens"] for each in documents] == expected.prompt_tokens


def test_the_command_reads_lines_and_says_what_it_cut(bundle: Path) -> None:
    lines = f"import os\n{'x = 1; ' * 20}\n"
    result = run(bundle, "--capacity", "9", "--context-overflow", "truncate", stdin=lines)
    assert result.exit_code == 0, result.output
    numbers = [[float(number) for number in line.split()] for line in result.stdout.splitlines()]
    with serving.load(bundle, capacity=9) as model:
        expected = model.embed(lines.splitlines(), context_overflow="truncate").vectors
    np.testing.assert_allclose(numbers, expected, rtol=1e-5)
    assert result.stderr == "Text 2 was too long: its beginning was embedded.\n"
