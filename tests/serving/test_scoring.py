"""Scores against transformers' log-softmax on the same windows, and what can't be scored."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, PreTrainedModel

import serving
from serving import UserError, scoring
from serving.bundle import SpecialTokens
from serving.cli import main
from serving.engine import FloatArray, IntArray
from serving.generation import Model
from tests.exports import export_bundle, once
from tests.serving.counting_engine import CountingEngine

TEXT = "def größe(self, naïve):\n    return [größe for größe in self] or 'π ≈ 3'\n" * 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    def make(path: Path) -> None:
        export_bundle(checkpoint("qwen2_window"), path)

    return once(tmp_path_factory, "qwen2_window-float32", make)


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint("qwen2_window")).eval()


def reference_log_probs(reference: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [n - 1, vocab] of what may follow each token but the last."""
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.double().log_softmax(-1)


def of_tokens(log_probs: torch.Tensor, ids: list[int]) -> np.ndarray:
    return log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


@pytest.mark.parametrize("options", [{}, {"prefill_chunk": 7}])
def test_scores_equal_transformers(
    bundle: Path,
    reference: PreTrainedModel,
    options: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "_LOGITS_BYTES", 4 * 512 * 11)  # eleven tokens a step
    with serving.load(bundle, **options) as model:  # type: ignore[arg-type]
        score = model.score(TEXT, logprobs=4)
        assert model.score(score.token_ids).logprobs.tolist() == score.logprobs.tolist()
    expected = reference_log_probs(reference, score.token_ids)
    assert len(score.token_ids) > 60
    np.testing.assert_allclose(score.logprobs, of_tokens(expected, score.token_ids), atol=1e-4)
    likeliest = expected.topk(4)
    assert score.top is not None
    assert [[i for i, _ in top] for top in score.top] == likeliest.indices.tolist()
    values = [[value for _, value in top] for top in score.top]
    np.testing.assert_allclose(values, likeliest.values, atol=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(32, 12), (20, 19), (7, 1)])
def test_windows_equal_transformers(
    bundle: Path, reference: PreTrainedModel, window: int, stride: int
) -> None:
    """Each window alone in transformers, of which tokens count that no window had before."""
    with serving.load(bundle, capacity=32, prefill_chunk=5) as model:
        score = model.score(TEXT, context_overflow="slide", window=window, stride=stride)
    ids = score.token_ids
    expected, done = [], 1
    for start in range(0, len(ids), stride):
        part = ids[start : start + window]
        values = of_tokens(reference_log_probs(reference, part), part)
        expected.append(values[done - start - 1 :])
        done = start + len(part)
        if done == len(ids):
            break
    assert len(expected) > 3
    np.testing.assert_allclose(score.logprobs, np.concatenate(expected), atol=1e-4)


def test_perplexity_and_bits_are_of_the_scored_text(
    bundle: Path, reference: PreTrainedModel
) -> None:
    with serving.load(bundle) as model:
        score = model.score(TEXT)
        assert model.tokenizer is not None
        first = model.tokenizer.decode(score.token_ids[:1])
    size = len(TEXT.encode()) - len(first.encode())
    ids = torch.tensor([score.token_ids])
    with torch.no_grad():
        loss = float(reference(input_ids=ids, labels=ids).loss)
    assert score.negative_log_likelihood == pytest.approx(loss, abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    bits = loss * len(score.logprobs) / math.log(2)
    assert score.scored_bytes == size
    assert score.bits_per_byte == pytest.approx(bits / size, rel=1e-4)


def test_a_long_text_is_refused_cut_or_scored_in_windows(bundle: Path) -> None:
    with serving.load(bundle, capacity=40) as model:
        length = len(model.encode(TEXT))
        with pytest.raises(UserError, match=f"{length} tokens don't fit into a context of 40"):
            model.score(TEXT)
        cut = model.score(TEXT, context_overflow="truncate")
        whole = model.score(TEXT, context_overflow="slide")
        beginning = model.score(cut.token_ids)
    assert (len(cut.token_ids), cut.truncated) == (40, True)
    assert (len(whole.token_ids), whole.truncated) == (length, False)
    assert cut.logprobs.tolist() == beginning.logprobs.tolist() == whole.logprobs[:39].tolist()
    assert cut.scored_bytes is not None
    assert whole.scored_bytes is not None
    assert cut.scored_bytes < whole.scored_bytes


class RecordingEngine(CountingEngine):
    """Notes how many positions of a step get logits."""

    def __init__(self, vocab: int, fill: float = 0.0) -> None:
        super().__init__(slots=1, capacity=300, vocab=vocab)
        self.asked: list[tuple[int, int]] = []
        self.fill = fill

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        assert first_slot == 0
        self.cache.check_room(past_lengths, input_ids.shape[1])
        self.asked.append((input_ids.shape[1], logits_positions.shape[1]))
        return np.full((*logits_positions.shape, self.vocab_size), self.fill, np.float32)


def test_logits_of_a_step_stay_small() -> None:
    engine = RecordingEngine(152_000)
    told: list[tuple[int, int]] = []
    model = Model(engine, SpecialTokens(), prefill_chunk=64)
    score = model.score(
        [1] * 280,
        context_overflow="slide",
        window=200,
        stride=80,
        progress=lambda *done: told.append(done),
    )
    np.testing.assert_allclose(score.logprobs, -math.log(152_000))
    assert all(4 * 152_000 * positions <= 32_000_000 for _, positions in engine.asked)
    assert (64, 1) in engine.asked, "tokens that are only context get one row of logits"
    assert told[-1] == (279, 279)
    assert told == sorted(told)


def test_windows_count_every_token_once() -> None:
    for length in range(2, 40):
        for window in range(2, 12):
            for stride in range(1, window):
                seen = list(scoring.windows(length, window, stride))
                counted = [i for each in seen for i in range(each.first, each.stop)]
                assert counted == list(range(1, length))
                assert all(each.stop - each.start <= window for each in seen)
                assert all(each.first - each.start >= window - stride for each in seen[1:])


def test_nan_is_an_error() -> None:
    model = Model(RecordingEngine(64, fill=math.nan), SpecialTokens())
    with pytest.raises(UserError, match="NaN"):
        model.score([1, 2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": [1]}, "The text has one token"),
        ({"prompt": []}, "empty"),
        ({"prompt": "text"}, "no tokenizer"),
        ({"prompt": [1, 64]}, "token id 64"),
        ({"window": 101}, "window is 101, but must be from 2 to the capacity of 100"),
        ({"window": 1}, "window is 1"),
        ({"window": 10, "stride": 10}, "stride is 10, but must be from 1 to 9"),
        ({"stride": 0}, "stride is 0"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"context_overflow": "cut"}, "context_overflow is 'cut'"),
    ],
)
def test_what_cannot_be_scored(options: dict[str, object], message: str) -> None:
    model = Model(CountingEngine(), SpecialTokens())
    with pytest.raises(UserError, match=message):
        model.score(**({"prompt": [1, 2, 3]} | options))  # type: ignore[arg-type]


def run(*arguments: str | Path, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments)], input=stdin)


def test_the_command_scores_files_and_all_of_them(
    bundle: Path, reference: PreTrainedModel, tmp_path: Path
) -> None:
    texts = {"a.txt": TEXT, "b.txt": "import os\n\nos.getcwd()\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    result = run(bundle, *(tmp_path / name for name in texts), "--json")
    assert result.exit_code == 0, result.output
    *each, together = json.loads(result.stdout)
    with serving.load(bundle) as model:
        losses = [
            -of_tokens(reference_log_probs(reference, ids), ids)
            for ids in map(model.encode, texts.values())
        ]
    for found, loss in zip((*each, together), (*losses, np.concatenate(losses)), strict=True):
        assert found["tokens"] == len(loss)
        assert found["negative_log_likelihood"] == pytest.approx(loss.mean(), abs=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(loss.mean()), rel=1e-3)
        assert found["tokens_per_second"] > 0
    bits = sum(found["bits_per_byte"] * found["scored_bytes"] for found in each)
    assert together["bits_per_byte"] * together["scored_bytes"] == pytest.approx(bits)
    assert [Path(found["file"]).name for found in each] == list(texts)


def test_the_command_reads_standard_input_and_prints_a_table(bundle: Path) -> None:
    result = run(bundle, "--window", "16", "--stride", "4", stdin=TEXT)
    assert result.exit_code == 0, result.output
    with serving.load(bundle) as model:
        score = model.score(TEXT, context_overflow="slide", window=16, stride=4)
    assert f"{score.perplexity:,.4f}" in result.stdout
    assert "bits a byte" in result.stdout


def test_the_command_refuses_what_is_no_text(bundle: Path) -> None:
    result = run(bundle, stdin=b"abc\xff")
    assert result.exit_code != 0
    assert "isn't UTF-8 text (byte 3 is wrong)" in result.output
