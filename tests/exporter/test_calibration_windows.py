"""Windows have the checkpoint's own tokens, and what is held out is never calibrated with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from exporter import calibration_windows
from exporter.calibration_windows import FEWEST, MOST, cut, spread, token_windows
from exporter.checkpoint import Checkpoint, find_checkpoint
from serving.errors import UserError
from tests.checkpoints import VOCABULARY

SENTENCE = "def function(argument): return argument + 1  # line {}\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(SENTENCE.format(number) for number in range(2000)))
    return file


@pytest.fixture
def model(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[], Checkpoint]:
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), directory)
    return lambda: find_checkpoint(str(directory))


def test_tokens_are_those_of_the_checkpoint(model: Callable[[], Checkpoint], text: Path) -> None:
    checkpoint = model()
    tokenizer = Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))
    expected = tokenizer.encode(text.read_text(), add_special_tokens=False).ids
    windows = token_windows(checkpoint, 40, text)
    np.testing.assert_array_equal(windows.calibration[0], expected[:40])
    np.testing.assert_array_equal(windows.held_out[0], expected[40:80])
    assert windows.calibration.shape == windows.held_out.shape == (MOST, 40)
    assert windows.calibration.dtype == windows.held_out.dtype == np.int64
    assert windows.source == "text.txt"


def test_windows_are_as_long_as_the_model_allows(model: Callable[[], Checkpoint]) -> None:
    assert token_windows(model(), 4096, None).held_out.shape == (MOST, 512)
    assert token_windows(model(), 20, None).held_out.shape == (MOST, 20)
    assert token_windows(model(), 2, None).held_out.shape == (MOST, 2)


@pytest.mark.parametrize("tokens", [80, 81, 159, 160, 1_000, 100_000])
def test_no_token_is_in_two_windows(tokens: int) -> None:
    stream = np.arange(tokens, dtype=np.int64)
    windows = cut(stream, [], 10, "numbers")
    both = np.concatenate([windows.calibration, windows.held_out])
    assert len(np.unique(both)) == both.size
    assert (np.diff(both, axis=1) == 1).all()
    pairs = min(MOST, tokens // 20)
    assert len(windows.calibration) == len(windows.held_out) == pairs
    # From all over the text: no gap is much larger than the others.
    assert both.min() == 0
    assert both.max() >= tokens - 20 - tokens % 20


def test_every_window_starts_with_bos_where_the_tokenizer_says_so(
    model: Callable[[], Checkpoint], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bos:
        """Stands for a tokenizer that puts 7 before a text and 8 behind it."""

        bos_token_id = 7

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            ids = [9 + ord(character) % 16 for character in text]
            return {"input_ids": ids if options else [7, *ids, 8]}

    monkeypatch.setattr(calibration_windows, "load_tokenizer", lambda _: Bos())
    windows = token_windows(model(), 30, text)
    for part in (windows.calibration, windows.held_out):
        assert (part[:, 0] == 7).all()
        assert part[:, 1:].min() >= 9
    expected = [9 + ord(character) % 16 for character in text.read_text()]
    assert windows.held_out[0, 1:].tolist() == expected[29:58]


def test_text_that_is_too_short(model: Callable[[], Checkpoint], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("0" * 79)  # a token each
    with pytest.raises(UserError) as caught:
        token_windows(model(), 10, short)
    assert str(caught.value) == (
        "The calibration text short.txt is too short: at least 80 tokens are needed and it has 79; "
        "give a longer one."
    )
    short.write_text("0" * 80)
    assert len(token_windows(model(), 10, short).held_out) == FEWEST


def test_long_text_is_used_from_all_over() -> None:
    text = "".join(f"{number:07d} " for number in range(1_000_000))
    taken = spread(text)
    assert len(taken) == 1_000_000
    numbers = [int(word) for word in taken.split() if len(word) == 7]
    assert min(numbers) == 0
    assert max(numbers) > 980_000
    assert max(np.diff(np.array(numbers))) < 20_000
    assert spread("short") == "short"


def test_a_checkpoint_without_a_tokenizer(model: Callable[[], Checkpoint], text: Path) -> None:
    checkpoint = model()
    (checkpoint.directory / "tokenizer.json").unlink()
    windows = token_windows(checkpoint, 64, None)
    assert windows.source.startswith("random tokens")
    assert windows.held_out.shape == (MOST, 64)
    assert 0 <= windows.held_out.min() < windows.held_out.max() < VOCABULARY
    assert (windows.held_out != windows.calibration).any()
    again = token_windows(checkpoint, 64, None)
    np.testing.assert_array_equal(again.held_out, windows.held_out)
    with pytest.raises(UserError, match=r"has no tokenizer, so .*text.txt can't become tokens"):
        token_windows(checkpoint, 64, text)


def test_a_tokenizer_of_another_model(model: Callable[[], Checkpoint], text: Path) -> None:
    checkpoint = model()
    checkpoint.config.vocab_size = 100
    with pytest.raises(UserError, match="get the tokenizer that belongs to it"):
        token_windows(checkpoint, 64, text)
