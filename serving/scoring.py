"""How likely a model finds a text: the log-probability of each token, and its perplexity."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serving.decoding import prefill
from serving.engine import Engine, FloatArray, IntArray
from serving.errors import UserError
from serving.sampling import MAX_LOGPROBS, Float64Array, log_probs, no_number

if TYPE_CHECKING:
    from tokenizers import Encoding

TopTokens = tuple[tuple[int, float], ...]
"""(token id, log-probability) of the likeliest tokens of a position, the most likely first."""

Progress = Callable[[int, int], None]

_LOGITS_BYTES = 32_000_000  # float32 logits that a step may give
_BLOCK = 1_000_000  # logits whose softmax is taken at once; two more arrays of them come into being


@dataclass(frozen=True, slots=True)
class Score:
    """What the model finds of a text's tokens ``token_ids`` [n], each after those before it.

    ``logprobs`` float64 [n - 1] are natural logarithms of the probabilities of all tokens but the
    first, before which there is nothing. ``top`` has the likeliest tokens in the place of each, if
    they were asked for. ``truncated`` says that the text went on. ``scored_bytes`` is how long the
    text of the scored tokens is in UTF-8, where it is known.
    """

    token_ids: list[int]
    logprobs: Float64Array
    top: list[TopTokens] | None = None
    truncated: bool = False
    scored_bytes: int | None = None

    @property
    def negative_log_likelihood(self) -> float:
        """Mean of the scored tokens, in nats."""
        return -float(self.logprobs.mean())

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; infinite where that is beyond float64."""
        return perplexity(self.negative_log_likelihood)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that the scored text takes, a byte of it; comparable between tokenizers."""
        if not self.scored_bytes:
            return None
        return -float(self.logprobs.sum()) / math.log(2) / self.scored_bytes


def perplexity(negative_log_likelihood: float) -> float:
    """exp of a mean negative log-likelihood in nats; infinite where that is beyond float64."""
    with np.errstate(over="ignore"):
        return float(np.exp(negative_log_likelihood))


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``start`` to ``stop`` of a text, which are run together; those from ``first`` count.

    What is before ``first`` has been counted in the window before, and is context here.
    """

    start: int
    first: int
    stop: int


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """Cover a text of ``length`` tokens with windows that begin ``stride`` tokens apart.

    Every token but the first counts once. In the first window tokens have all context that there
    is, in the others at least ``window - stride`` tokens.
    """
    first = 1
    for start in range(0, length, stride):
        stop = min(start + window, length)
        yield Window(start, first, stop)
        if stop == length:
            return
        first = stop


def check_windows(window: int, stride: int, capacity: int) -> None:
    """Raise UserError for windows that the engine can't run or that leave tokens out."""
    if not 2 <= window <= capacity:
        raise UserError(
            f"window is {window}, but must be from 2 to the capacity of {capacity}: change window."
        )
    if not 1 <= stride < window:
        raise UserError(
            f"stride is {stride}, but must be from 1 to {window - 1}, so that windows overlap: "
            "change stride."
        )


def score(
    engine: Engine,
    ids: IntArray,
    *,
    window: int,
    stride: int,
    chunk: int,
    logprobs: int | None = None,
    progress: Progress | None = None,
    slot: int = 0,
) -> tuple[Float64Array, list[TopTokens] | None]:
    """Log-probabilities float64 [n - 1] of all of ``ids`` [n] but the first, through one slot.

    They are run in windows, ``chunk`` tokens at a time or fewer: logits of a step stay under 32 MB.
    ``logprobs`` asks for so many of the likeliest tokens of each position too. ``progress`` is told
    how many tokens were scored so far, and of how many.

    Raises UserError if there are fewer than two tokens or the engine gave NaN.
    """
    if len(ids) < 2:
        raise UserError("The text has one token, and the first has no probability: give more text.")
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        raise UserError(
            f"logprobs is {logprobs}, but must be from 0 to {MAX_LOGPROBS}: change logprobs."
        )
    values: Float64Array = np.empty(len(ids) - 1)
    done = 0
    top: list[TopTokens] | None = None if logprobs is None else []
    for each in windows(len(ids), window, stride):
        for logits, targets in _steps(engine, ids, each, chunk, slot):
            values[done : done + len(targets)] = token_log_probs(logits, targets)
            done += len(targets)
            if top is not None and logprobs is not None:
                pairs = zip(logits, targets.tolist(), strict=True)
                top += [log_probs(row, target, logprobs).top for row, target in pairs]
            if progress is not None:
                progress(done, len(values))
    return values, top


def _steps(
    engine: Engine, ids: IntArray, window: Window, chunk: int, slot: int
) -> Iterator[tuple[FloatArray, IntArray]]:
    """Run a window; gives logits [n, vocab] and the tokens [n] that they are to predict."""
    tokens, following = ids[window.start : window.stop - 1], ids[window.start + 1 : window.stop]
    context = window.first - window.start - 1
    if context:
        prefill(engine, tokens[:context], slot, chunk)
    size = max(1, min(chunk, _LOGITS_BYTES // (4 * engine.vocab_size)))
    for begin in range(context, len(tokens), size):
        new = tokens[None, begin : begin + size]
        positions = np.arange(new.shape[1])[None]
        yield (
            engine.step(new, np.array([begin]), positions, slot)[0],
            following[begin : begin + size],
        )


def token_log_probs(logits: FloatArray, targets: IntArray) -> Float64Array:
    """Log-probabilities float64 [n] of tokens ``targets`` [n] by ``logits`` [n, vocab].

    Raises UserError if the logits hold NaN.
    """
    rows = max(1, _BLOCK // logits.shape[1])
    parts = []
    for start in range(0, len(logits), rows):
        shifted, _, totals = softmax_parts(logits[start : start + rows])
        wanted = targets[start : start + rows]
        parts.append(shifted[np.arange(len(wanted)), wanted] - np.log(totals))
    values: Float64Array = np.concatenate(parts)
    if np.isnan(values).any():
        raise no_number()
    return values


def softmax_parts(logits: FloatArray) -> tuple[FloatArray, FloatArray, Float64Array]:
    """Logits less their row's maximum, the exponentials of those, and their float64 sums [n].

    A token's log-probability is its shifted logit less the logarithm of the sum.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    return shifted, weights, weights.sum(axis=1, dtype=np.float64)


def scored_bytes(text: str, encoding: "Encoding", kept: int) -> int:
    """Length in UTF-8 of the text of tokens 1 to ``kept`` of ``encoding``."""
    _, first = encoding.token_to_chars(0) or (0, 0)  # a special token stands for no text
    last = len(text)
    if kept < len(encoding):
        _, last = encoding.token_to_chars(kept - 1) or (0, first)
    return len(text[first:last].encode())
