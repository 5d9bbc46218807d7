"""Texts to calibrate an encoder with, and others to measure its quality on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.calibration_text import default_text, read_text
from exporter.calibration_windows import Tokens, spread
from exporter.checkpoint import Checkpoint
from exporter.tokenization import load_tokenizer
from serving.errors import UserError

LENGTH = 128  # tokens of the longest text
MOST, FEWEST = 48, 8  # texts of each kind
_SHORTEST = 40  # characters
_SEED = 20240229


@dataclass(frozen=True)
class EncoderTexts:
    """Token ids of texts, each int64 [n], with their special tokens; ``source`` says whence."""

    calibration: list[Tokens]
    held_out: list[Tokens]
    source: str


def encoder_texts(checkpoint: Checkpoint, max_length: int, path: Path | None) -> EncoderTexts:
    """Take paragraphs of the text at ``path``, or of a default one, in turn for either kind.

    A checkpoint without a tokenizer gets random tokens. Raises UserError for text that can't be
    used or is too short.
    """
    length = min(LENGTH, max_length)
    tokenizer = load_tokenizer(checkpoint.directory)
    if tokenizer is None:
        if path is not None:
            raise UserError(
                f"{checkpoint.name} has no tokenizer, so {path} can't become tokens: add "
                "tokenizer.json to it, or leave --calibration out."
            )
        vocab_size = int(checkpoint.config.get_text_config().vocab_size)
        random = np.random.default_rng(_SEED).integers(0, vocab_size, (2 * MOST, length))
        source = "random tokens, because the checkpoint has no tokenizer"
        return EncoderTexts(list(random[::2]), list(random[1::2]), source)
    text, source = default_text() if path is None else (read_text(path), path.name)
    paragraphs = [" ".join(part.split()) for part in spread(text).split("\n\n")]
    paragraphs = [part for part in paragraphs if len(part) >= _SHORTEST]
    if len(paragraphs) < 2 * FEWEST:
        raise UserError(
            f"The calibration text {source} is too short: {2 * FEWEST} paragraphs, with empty "
            f"lines between them, are needed and it has {len(paragraphs)}; give a longer one."
        )
    count = min(len(paragraphs), 2 * MOST)
    chosen = [paragraphs[i] for i in np.linspace(0, len(paragraphs) - 1, count).astype(int)]
    ids = tokenizer(chosen, truncation=True, max_length=length, verbose=False)["input_ids"]
    tokens = [np.array(row, np.int64) for row in ids]
    return EncoderTexts(tokens[::2], tokens[1::2], source)
