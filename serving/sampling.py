"""Choosing the next token: a pure function of logits, parameters and random state.

Every operation is rounded in one way only, so the same seed gives the same tokens on every machine,
and in serving/native/src/sampling.c, which computes the same: see ``exponentials`` and ``total``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt

from serving.bad_words import BadWords
from serving.errors import UserError
from serving.repeated_ngrams import repeating

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

MAX_LOGPROBS = 20
_LANES = 64  # of a sum

# Below it only the likeliest token has a chance, and float32 soon overflows.
LEAST_TEMPERATURE = 1e-4


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParameters but ``bad_words``, as keyword parameters."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    logprobs: int | None
    logit_bias: Mapping[int, float]
    no_repeat_ngram_size: int


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen; raises UserError for a value out of its range.

    ``temperature`` 0 takes the most likely token. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 keep
    every token. ``repetition_penalty`` looks at the prompt too, as in transformers;
    ``presence_penalty`` and ``frequency_penalty`` only at generated tokens, as OpenAI defines them.
    With a ``seed`` a sequence's randomness depends on nothing else, so equal prompts of one batch
    give equal texts. ``logprobs`` is how many of the most likely tokens to report beside the chosen
    one (None: report nothing). ``logit_bias`` is added to the logits of its token ids before
    everything else, for greedy choices too. Nor do these choose what ``bad_words`` forbid, or what
    would make ``no_repeat_ngram_size`` tokens in a row come twice (0: they may).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: BadWords | None = None
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        tiny = math.ulp(0.0)
        _require("temperature", self.temperature, "a number of at least 0", 0, math.inf)
        _require("top_p", self.top_p, "above 0 and at most 1", tiny, 1)
        _require("min_p", self.min_p, "from 0 to 1", 0, 1)
        _require("repetition_penalty", self.repetition_penalty, "above 0", tiny, math.inf)
        _require("presence_penalty", self.presence_penalty, "from -2 to 2", -2, 2)
        _require("frequency_penalty", self.frequency_penalty, "from -2 to 2", -2, 2)
        size = self.no_repeat_ngram_size
        _require("no_repeat_ngram_size", size, "a whole number", 0, math.inf, whole=True)
        _require("top_k", self.top_k, "a whole number of at least 0", 0, math.inf, whole=True)
        if self.seed is not None:
            _require("seed", self.seed, "a whole number of at least 0", 0, math.inf, whole=True)
        if self.logprobs is not None:
            rule = f"a whole number from 0 to {MAX_LOGPROBS}"
            _require("logprobs", self.logprobs, rule, 0, MAX_LOGPROBS, whole=True)
        for token_id, bias in self.logit_bias.items():
            rule = "a whole number of at least 0"
            _require("a token id of logit_bias", token_id, rule, 0, math.inf, whole=True)
            _require(f"logit_bias of token {token_id}", bias, "from -100 to 100", -100, 100)

    @property
    def changes_logits(self) -> bool:
        """Whether there is a bias, a penalty or a forbidden word."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        forbids = self.bad_words or self.no_repeat_ngram_size
        return bool(penalties or self.logit_bias or forbids)


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Natural log-probabilities of one position, of the model's own distribution.

    That is before penalties, temperature and filters. ``top`` lists (token id, log-probability),
    the most likely first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


def no_number() -> UserError:
    """Return the error of logits that hold NaN, or infinity as the highest."""
    return UserError(
        "The engine returned NaN or infinity for this prompt, its precision overflows: "
        "export the model again in float32 or with --bf16."
    )


def no_token() -> UserError:
    """Return the error of a position at which no token is allowed."""
    return UserError(
        "No token may come next, for the bad words forbid all that are left: leave some of them "
        "out."
    )


def random_state(seed: int | None) -> np.random.Generator:
    """Return one sequence's random state; a seed of None takes fresh entropy."""
    return np.random.Generator(np.random.PCG64(seed))


def choice_seed(seed: int | None) -> int:
    """Return the 64-bit seed of a sequence's noise where an engine chooses its tokens.

    A seed of None takes fresh entropy. Whoever draws a sequence in parts keeps it, so that the
    parts continue each other.
    """
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])


def sample(
    logits: FloatArray,
    parameters: SamplingParameters,
    prompt_ids: IntArray,
    generated_ids: IntArray,
    state: np.random.Generator,
) -> int:
    """Choose the next token from ``logits`` [vocab], which stay as they are.

    ``prompt_ids`` and ``generated_ids`` are 1-D. A greedy choice leaves ``state`` alone; any other
    draws one number from it. Raises UserError if the engine gave NaN or infinity, or no token is
    allowed.
    """
    scores = _penalized(logits, parameters, prompt_ids, generated_ids)
    if parameters.temperature == 0:
        return int(scores.argmax())
    scores = warp(scores, parameters)
    kept = np.flatnonzero(scores > -np.inf)
    return int(kept[draw(exponentials(scores[kept]), state)])


def distribution(
    logits: FloatArray,
    parameters: SamplingParameters,
    prompt_ids: IntArray,
    generated_ids: IntArray,
) -> Float64Array:
    """Return the probabilities [vocab] with which ``sample`` chooses, of the same parameters.

    Temperature 0 gives the likeliest token probability 1. Raises UserError as ``sample`` does.
    """
    scores = _penalized(logits, parameters, prompt_ids, generated_ids)
    if parameters.temperature == 0:
        likeliest: Float64Array = np.zeros(len(scores))
        likeliest[scores.argmax()] = 1
        return likeliest
    probabilities = exponentials(warp(scores, parameters)).astype(np.float64)
    probabilities /= probabilities.sum()
    return probabilities


def sample_after_draft(
    target: Float64Array, draft: Float64Array, drafted: int, state: np.random.Generator
) -> int:
    """Choose a token with probabilities ``target`` [vocab], given one drawn from ``draft`` [vocab].

    ``drafted`` is taken with probability min(1, target / draft); else the token is drawn from the
    positive part of target - draft, so that together tokens come as if drawn from ``target``
    (Leviathan et al. 2023; Chen et al. 2023).
    """
    if state.random() * draft[drafted] < target[drafted]:
        return drafted
    residual = np.maximum(target - draft, 0)
    # Rounding may leave nothing where the two are equal, and then either may be drawn from.
    return draw(residual if residual.any() else target, state)


def draw(weights: FloatArray | Float64Array, state: np.random.Generator) -> int:
    """Draw an index with probability in proportion to ``weights`` [n]; takes one random number."""
    cumulative = weights.astype(np.float64).cumsum()
    return int(np.searchsorted(cumulative, state.random() * cumulative[-1], side="right"))


def _penalized(
    logits: FloatArray,
    parameters: SamplingParameters,
    prompt_ids: IntArray,
    generated_ids: IntArray,
) -> FloatArray:
    scores = logits
    if parameters.changes_logits:
        scores = penalize(logits, parameters, prompt_ids, generated_ids)
    best = scores[scores.argmax()]
    if np.isnan(best) or best == np.inf:
        raise no_number()
    if best == -np.inf:
        raise no_token()
    return scores


def penalize(
    logits: FloatArray,
    parameters: SamplingParameters,
    prompt_ids: IntArray,
    generated_ids: IntArray,
) -> FloatArray:
    """Apply the bias, the repetition, presence and frequency penalties, and forbid bad words.

    ``logits`` [vocab] are copied, and what is -inf there stays so. A draft model may lack some of
    the ids that have a bias.
    """
    scores = logits.copy()
    for token_id, bias in parameters.logit_bias.items():
        if token_id < len(scores):
            scores[token_id] += np.float32(bias)
    if parameters.repetition_penalty != 1:
        seen = np.concatenate((prompt_ids, generated_ids))
        penalty = np.float32(parameters.repetition_penalty)
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    if parameters.presence_penalty or parameters.frequency_penalty:
        ids, counts = np.unique(generated_ids, return_counts=True)
        scores[ids] -= np.float32(parameters.presence_penalty)
        scores[ids] -= np.float32(parameters.frequency_penalty) * counts.astype(np.float32)
    if parameters.no_repeat_ngram_size:
        written = np.concatenate((prompt_ids, generated_ids))
        scores[repeating(written, parameters.no_repeat_ngram_size)] = -np.inf
    if parameters.bad_words:
        scores[parameters.bad_words.forbidden(prompt_ids, generated_ids)] = -np.inf
    return scores


def warp(scores: FloatArray, parameters: SamplingParameters) -> FloatArray:
    """Divide by the temperature, then set what top-k, top-p and min-p drop to -inf, in that order.

    The temperature must be above 0. The order and what is kept are transformers' own; of equal
    tokens at its border, where transformers keeps any, top-p keeps those with the lowest ids.
    """
    scores = scores / np.float32(parameters.temperature)
    if 0 < parameters.top_k < len(scores):
        smallest_kept = np.partition(scores, -parameters.top_k)[-parameters.top_k]
        scores[scores < smallest_kept] = -np.inf
    if parameters.top_p < 1:
        scores[_beyond_top_p(scores, parameters.top_p)] = -np.inf
    if parameters.min_p > 0:
        scores[_below_min_p(scores, parameters.min_p)] = -np.inf
    return scores


def _below_min_p(scores: FloatArray, min_p: float) -> npt.NDArray[np.bool_]:
    """Whether each token is less likely than the likeliest times ``min_p``."""
    surely = scores.max() + np.float32(math.log(min_p) - 1)
    below: npt.NDArray[np.bool_] = scores < surely
    close = np.flatnonzero(~below)
    below[close] = exponentials(scores[close]) < np.float32(min_p)
    return below


def _beyond_top_p(scores: FloatArray, top_p: float) -> IntArray:
    """Return the ids of the least likely tokens whose probabilities add up to at most 1 - top_p.

    Only candidates are sorted: tokens that are dropped whatever the order make up the rest.
    """
    probabilities = exponentials(scores)
    probabilities /= np.float32(total(probabilities))
    surely_dropped = probabilities <= np.float32((1 - top_p) / len(scores))
    surely_dropped[scores.argmax()] = False
    candidates = np.flatnonzero(~surely_dropped)
    ascending = candidates[np.argsort(-scores[candidates], kind="stable")][::-1]
    rest = np.flatnonzero(surely_dropped)
    cumulative = probabilities[ascending].cumsum(dtype=np.float64) + total(probabilities[rest])
    dropped = cumulative.astype(np.float32) <= np.float32(1 - top_p)
    dropped[-1] = False
    return np.concatenate((rest, ascending[dropped]))


def exponentials(scores: FloatArray) -> FloatArray:
    """e to the power of ``scores`` [n] less the highest, rounded to the nearest float32.

    No exponential of a float32 from -104 to 0 is nearer than 1.26 units in the last place of a
    float64 to where that rounding changes (all were tried), and no mathematical library errs so
    much: so they are the same everywhere. Scores may hold -inf.
    """
    exact: Float64Array = np.exp(scores - scores.max(), dtype=np.float64)
    return exact.astype(np.float32)


def total(numbers: FloatArray) -> np.float64:
    """The sum of ``numbers`` [n]: of 64 sums in turn, each of every 64th number in turn.

    ``numpy.sum`` doesn't promise an order, which rounding depends on.
    """
    whole = len(numbers) // _LANES * _LANES
    sums = numbers[:whole].reshape(-1, _LANES).sum(axis=0, dtype=np.float64)
    sums[: len(numbers) - whole] += numbers[whole:]
    last: np.float64 = sums.cumsum()[-1]
    return last


def log_softmax(logits: FloatArray) -> FloatArray:
    """Natural log-probabilities of ``logits`` [n, vocab], of the same shape."""
    shifted: FloatArray = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def log_probs(logits: FloatArray, token_id: int, top: int) -> LogProbs:
    """Log-probabilities of the chosen and the ``top`` most likely tokens, of ``logits`` [vocab]."""
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    chosen, top = float(values[token_id]), min(top, len(values))
    if top == 0:
        return LogProbs(chosen, ())
    return LogProbs(chosen, tuple((int(i), float(values[i])) for i in likeliest(values, top)))


def likeliest(values: FloatArray | Float64Array, count: int) -> IntArray:
    """Return the indices of the ``count`` largest ``values`` [n], the largest first.

    Of equal ones the lower index comes first.
    """
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]


def _require(
    name: str, value: object, rule: str, least: float, most: float, *, whole: bool = False
) -> None:
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    number = float(cast(float, value)) if is_number else math.nan
    if not (math.isfinite(number) and least <= number <= most):
        raise UserError(f"{name} is {value!r}, but must be {rule}: change {name}.")
