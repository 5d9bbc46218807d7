"""Windows of tokens: some to calibrate with, others, never overlapping, to measure quality on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exporter.calibration_text import default_text, read_text
from exporter.checkpoint import Checkpoint
from exporter.tokenization import load_tokenizer
from serving.errors import UserError

Tokens = npt.NDArray[np.int64]

LENGTH = 512  # tokens of a window, if the model takes as many
MOST, FEWEST = 16, 4  # windows of each kind
_CHARACTERS = 1_000_000  # more isn't tokenised: windows never need as much
_PIECES = 64
_SEED = 20240229
_LOGITS_BYTES = 1_500_000_000  # float32 logits of the held-out windows


@dataclass(frozen=True)
class TokenWindows:
    """``calibration`` and ``held_out`` are int64 [windows, length]; ``source`` says whence."""

    calibration: Tokens
    held_out: Tokens
    source: str


def token_windows(checkpoint: Checkpoint, max_length: int, path: Path | None) -> TokenWindows:
    """Cut the text at ``path``, or a default one, into windows of the checkpoint's own tokens.

    Each window starts with the BOS token where the tokenizer adds one. A checkpoint without a
    tokenizer gets random tokens. Raises UserError for text that can't be used or is too short.
    """
    length = min(LENGTH, max_length)
    vocab_size = int(checkpoint.config.get_text_config(decoder=True).vocab_size)
    tokenizer = load_tokenizer(checkpoint.directory)
    if tokenizer is None:
        if path is not None:
            raise UserError(
                f"{checkpoint.name} has no tokenizer, so {path} can't become tokens: add "
                "tokenizer.json to it, or leave --calibration out."
            )
        random = np.random.default_rng(_SEED).integers(0, vocab_size, (2 * MOST, length))
        source = "random tokens, because the checkpoint has no tokenizer"
        return _affordable(TokenWindows(random[::2], random[1::2], source), vocab_size)
    text, source = default_text() if path is None else (read_text(path), path.name)
    ids = tokenizer(spread(text), add_special_tokens=False, verbose=False)["input_ids"]
    first = _first_tokens(tokenizer("")["input_ids"], tokenizer.bos_token_id)
    if max(ids, default=0) >= vocab_size:
        raise UserError(
            f"The tokenizer of {checkpoint.name} gives token {max(ids)} and its model knows "
            f"{vocab_size}: get the tokenizer that belongs to it."
        )
    return _affordable(cut(np.array(ids, dtype=np.int64), first, length, source), vocab_size)


def cut(stream: Tokens, first: Sequence[int], length: int, source: str) -> TokenWindows:
    """Cut a stream [tokens] into blocks, calibration and held out in turn, spread over all of it.

    Each window is ``first`` and a block, ``length`` tokens together. Raises UserError where that
    gives fewer than ``FEWEST`` windows of each kind.
    """
    block = length - len(first)
    pairs = len(stream) // (2 * block)
    if pairs < FEWEST:
        raise UserError(
            f"The calibration text {source} is too short: at least {2 * FEWEST * block:,} tokens "
            f"are needed and it has {len(stream):,}; give a longer one."
        )
    blocks = stream[: pairs * 2 * block].reshape(pairs, 2, block)
    chosen = blocks[np.linspace(0, pairs - 1, min(pairs, MOST)).astype(int)]
    start = np.broadcast_to(np.array(first, dtype=np.int64), (*chosen.shape[:2], len(first)))
    windows = np.concatenate([start, chosen], axis=2)
    return TokenWindows(
        np.ascontiguousarray(windows[:, 0]), np.ascontiguousarray(windows[:, 1]), source
    )


def _affordable(windows: TokenWindows, vocab_size: int) -> TokenWindows:
    """The windows, with fewer held out where the logits of all of them would fill a disk."""
    count, length = windows.held_out.shape
    most = max(FEWEST, _LOGITS_BYTES // (4 * length * vocab_size))
    return replace(windows, held_out=np.ascontiguousarray(windows.held_out[:: -(-count // most)]))


def spread(text: str) -> str:
    """A text of at most ``_CHARACTERS`` characters, in pieces from all over the given one."""
    if len(text) <= _CHARACTERS:
        return text
    size = _CHARACTERS // _PIECES
    starts = (len(text) * piece // _PIECES for piece in range(_PIECES))
    return "".join(text[start : start + size] for start in starts)


def _first_tokens(around_nothing: Sequence[int], bos: int | None) -> list[int]:
    """The tokens that every text starts with; what a tokenizer adds at the end stays away."""
    return [bos] if bos is not None and list(around_nothing[:1]) == [bos] else []
