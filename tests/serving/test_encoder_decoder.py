"""Encoder-decoders as they are served: the tokens of transformers, greedy, sampled and by beams."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

import serving
from serving.cli import main
from serving.errors import UserError
from serving.generation import Model
from serving.triton.repository import Deployment, write_version
from tests.checkpoints import VOCABULARY
from tests.encoder_decoders import EOS, shared_bundle

NEW_TOKENS = 16
SLOTS = 4
LONGEST = 60

Bundles = Callable[[str], Path]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Return a function from a name to the directory with its checkpoint and its bundle."""

    return lambda name: shared_bundle(tmp_path_factory, name)


@pytest.fixture(scope="session")
def reference(bundles: Bundles) -> Callable[[str], PreTrainedModel]:
    @functools.cache
    def load(name: str) -> PreTrainedModel:
        return AutoModelForSeq2SeqLM.from_pretrained(bundles(name) / "checkpoint").eval()

    return load


@pytest.fixture
def bart(bundles: Bundles) -> Iterator[Model]:
    with serving.load(bundles("bart") / "bundle", slots=SLOTS, threads=1) as model:
        yield model


def sources(count: int = 20) -> list[list[int]]:
    """Sources of random tokens, of 1 to 59 tokens."""
    random = np.random.default_rng(5)
    lengths = random.integers(1, LONGEST, count)
    return [random.integers(3, VOCABULARY, length).tolist() for length in lengths]


def generated(model: PreTrainedModel, source: list[int], **options: object) -> list[int]:
    """What transformers generates behind the token that outputs go on from."""
    ids = torch.tensor([source])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    tokens: list[int] = output[0, 1:].tolist()
    return tokens


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_outputs_equal_transformers(
    name: str, bundles: Bundles, reference: Callable[[str], PreTrainedModel]
) -> None:
    options: list[dict[str, float]] = [
        {"min_new_tokens": 3},
        {"num_beams": 4, "length_penalty": 0.6},
        {"num_beams": 4, "length_penalty": 1.0},
        {"no_repeat_ngram_size": 2, "num_beams": 2},
    ]
    lengths: set[int] = set()
    with serving.load(bundles(name) / "bundle", slots=SLOTS, threads=1) as model:
        for chosen in options:
            results = model.generate(sources(), max_new_tokens=NEW_TOKENS, **chosen)  # type: ignore[arg-type]
            expected = [generated(reference(name), source, **chosen) for source in sources()]
            assert [result.token_ids for result in results] == expected, chosen
            lengths |= {len(tokens) for tokens in expected}
            assert [r.prompt_tokens for r in results] == [len(source) for source in sources()]
    assert len(lengths) > 3, "outputs are equally long"


def test_what_is_forced_comes_first_and_last(bart: Model) -> None:
    result = bart.generate([7, 8, 9], max_new_tokens=5, ignore_eos=True)
    assert result.token_ids[0] == 0
    assert result.token_ids[-1] == EOS
    assert result.finish_reason == "length"
    again = bart.generate([7, 8, 9], max_new_tokens=3, decoder_prompt=[5], ignore_eos=True)
    assert again.token_ids[0] != 0


def test_sampled_tokens_have_the_probabilities_of_transformers(
    bart: Model, reference: Callable[[str], PreTrainedModel]
) -> None:
    source = sources()[0]
    result = bart.generate(
        source, max_new_tokens=12, temperature=1.0, seed=3, logprobs=0, ignore_eos=True
    )
    start = reference("bart").config.decoder_start_token_id
    ids = torch.tensor([[start, *result.token_ids[:-1]]])
    with torch.no_grad():
        logits = reference("bart")(torch.tensor([source]), decoder_input_ids=ids).logits[0]
    expected = logits.log_softmax(-1)[range(len(result.token_ids)), result.token_ids]
    assert result.logprobs is not None
    got = [each.chosen for each in result.logprobs]
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-4)
    assert result.token_ids != bart.generate(source, max_new_tokens=12, ignore_eos=True).token_ids


def test_a_long_source_is_refused_or_cut(bundles: Bundles, bart: Model) -> None:
    source = [*range(10, 30), EOS]
    with serving.load(bundles("bart") / "bundle", slots=1, source_capacity=8, threads=1) as model:
        with pytest.raises(UserError, match="21 tokens don't fit into the source capacity of 8"):
            model.generate(source)
        cut = model.generate(source, max_new_tokens=6, context_overflow="truncate")
    whole = bart.generate([*range(10, 17), EOS], max_new_tokens=6)
    assert cut.token_ids == whole.token_ids
    assert cut.prompt_tokens == 8


def test_what_an_encoder_decoder_cannot_do(bundles: Bundles, bart: Model, tmp_path: Path) -> None:
    path = bundles("bart") / "bundle"
    with pytest.raises(UserError, match="reads from 1 to 256"):
        serving.load(path, source_capacity=257)
    with pytest.raises(UserError, match="prefix_rows"):
        serving.load(path, prefix_rows=1)
    with pytest.raises(UserError, match="draft"):
        serving.load(path, draft=path)
    with pytest.raises(UserError, match="on the CPU only"):
        serving.load(path, provider="cuda")
    with pytest.raises(UserError, match="use generate"):
        bart.score([1, 2, 3])
    with pytest.raises(UserError, match="don't name their language"):
        bart.generate([7, 8], source_language="de_DE")
    with pytest.raises(UserError, match="no token for the language 'de_DE'"):
        bart.generate([7, 8], target_language="de_DE")
    with pytest.raises(UserError, match="leave --ensemble out"):
        write_version(Deployment(path, "translator", is_ensemble=True), tmp_path)
    with pytest.raises(UserError, match="embed no text"):
        bart.embed([1, 2, 3])
    assert not bart.gives_embeddings


def test_commands(bundles: Bundles) -> None:
    bundle = str(bundles("bart") / "bundle")
    run = CliRunner().invoke
    beams = ["--num-beams", "2", "--max-new-tokens", "6", "--threads", "1"]
    with serving.load(bundle, slots=2, threads=1) as model:
        expected = model.generate("def f(x):", num_beams=2, max_new_tokens=6).text
    for command in ("generate", "translate", "summarize"):
        done = run(main, [command, bundle, "def f(x):", *beams])
        assert done.exit_code == 0, done.output
        assert done.stdout == expected + "\n"
    done = run(main, ["translate", bundle, "x" * 600, *beams])
    assert done.exit_code == 1
    assert "source capacity" in done.output
