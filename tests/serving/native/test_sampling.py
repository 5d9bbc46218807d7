"""Sampling in C chooses what serving/sampling.py chooses, bit for bit."""

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.native.library import Allocator, Error, Sampling
from serving.sampling import SamplingParameters, exponentials, random_state, sample
from tests.serving.native.compiled import compiled

VOCABULARIES = (7, 300, 50_000)
CHOICES: dict[str, list[Any]] = {
    "temperature": [0.1, 0.7, 1.0, 1.3, 0.0],
    "top_k": [0, 0, 1, 5, 40, 10**6],
    "top_p": [1.0, 0.9, 0.3, 0.999, 1e-6],
    "min_p": [0.0, 0.0, 0.05, 1.0, 0.001],
    "repetition_penalty": [1.0, 1.3, 0.8],
    "presence_penalty": [0.0, 0.7, -1.1],
    "frequency_penalty": [0.0, 0.13],
}


class Random(ctypes.Structure):
    """``Random``: two integers of 128 bits."""

    _fields_ = (("words", ctypes.c_uint64 * 4),)


class Memory(ctypes.Structure):
    """``Memory``."""

    _fields_ = (("allocator", Allocator), ("newest", ctypes.c_void_p))


class Sampler(ctypes.Structure):
    """``Sampler``."""

    _fields_ = (("vocab_size", ctypes.c_size_t), ("arrays", ctypes.c_void_p * 4))


class Text(ctypes.Structure):
    """``Text``."""

    _fields_ = (("ids", ctypes.c_void_p), ("count", ctypes.c_size_t), ("prompt", ctypes.c_size_t))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = ("sampling.c", "selection.c", "random.c", "memory.c", "failure.c")
    return ctypes.CDLL(str(compiled(tmp_path_factory, "sampling", *sources)))


class Chooser:
    """The sampler of a vocabulary, with a random state."""

    def __init__(self, library: ctypes.CDLL, vocab_size: int) -> None:
        self._library = library
        library.memory_from.restype = Memory
        self._memory = library.memory_from(ctypes.byref(Allocator()))
        self._sampler, self._error = Sampler(), Error()
        # ctypes aligns to 8 bytes, a Random is aligned to 16.
        self._room = (ctypes.c_uint64 * 6)()
        address = ctypes.addressof(self._room)
        self._random = ctypes.c_void_p(address + address % 16)
        status = library.sampler_create(
            ctypes.c_size_t(vocab_size),
            *(ctypes.byref(each) for each in (self._memory, self._sampler, self._error)),
        )
        assert status == 0

    def seed(self, seed: int) -> None:
        self._library.random_from_seed.restype = Random
        state = self._library.random_from_seed(ctypes.c_uint64(seed))
        ctypes.memmove(self._random, ctypes.byref(state), ctypes.sizeof(state))

    def choose(
        self, logits: np.ndarray, sampling: Sampling, ids: np.ndarray, prompt: int
    ) -> int | None:
        """The token, or None for an error."""
        chosen = ctypes.c_int64()
        status = self._library.sampler_choose(
            *(ctypes.byref(self._sampler), ctypes.c_void_p(logits.ctypes.data)),
            *(ctypes.byref(sampling), Text(ids.ctypes.data, len(ids), prompt)),
            *(None, ctypes.c_size_t(0), self._random, ctypes.byref(chosen)),
            ctypes.byref(self._error),
        )
        return None if status else chosen.value

    def close(self) -> None:
        self._library.memory_free(ctypes.byref(self._memory))


@pytest.fixture(params=VOCABULARIES)
def chooser(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[Chooser]:
    chooser = Chooser(library, request.param)
    yield chooser
    chooser.close()


def make_logits(rng: np.random.Generator, vocab_size: int) -> np.ndarray:
    """Spread out or close together; some with ties, some with tokens that are forbidden."""
    logits = (rng.standard_normal(vocab_size) * rng.choice([0.1, 1, 5, 20])).astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        return np.round(logits)
    if kind == 1:
        logits[rng.random(vocab_size) < 0.3] = -np.inf
        logits[0] = 1
    return logits


def test_the_same_tokens_of_the_same_logits(chooser: Chooser) -> None:
    vocab_size = chooser._sampler.vocab_size
    rng = np.random.default_rng(vocab_size)
    chosen = set()
    for _ in range(150 if vocab_size < 1000 else 40):
        logits = make_logits(rng, vocab_size)
        values = {name: rng.choice(choices).item() for name, choices in CHOICES.items()}
        ids = rng.integers(0, vocab_size, rng.integers(1, 50))
        prompt = int(rng.integers(0, len(ids) + 1))
        biased = rng.choice(vocab_size, 3, replace=False)
        amounts = rng.normal(0, 3, 3).astype(np.float32)
        bias = dict(zip(biased.tolist(), amounts.tolist(), strict=True))
        seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        parameters = SamplingParameters(logit_bias=bias, **values)
        native = Sampling(
            bias_ids=biased.ctypes.data, bias=amounts.ctypes.data, bias_count=3, **values
        )
        state = random_state(seed)
        chooser.seed(seed)
        for _ in range(2):
            expected = sample(logits, parameters, ids[:prompt], ids[prompt:], state)
            assert chooser.choose(logits, native, ids, prompt) == expected, (values, seed)
            chosen.add(expected)
    assert len(chosen) > 4


@pytest.mark.parametrize("overflow", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_overflow_is_no_token(chooser: Chooser, overflow: float, temperature: float) -> None:
    logits = np.zeros(chooser._sampler.vocab_size, np.float32)
    logits[3] = overflow
    sampling = Sampling(temperature=temperature)
    assert chooser.choose(logits, sampling, np.zeros(1, np.int64), 1) is None


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_random_numbers_are_those_of_numpy(library: ctypes.CDLL, seed: int) -> None:
    library.random_next.restype = ctypes.c_double
    chooser, state = Chooser(library, 2), random_state(seed)
    chooser.seed(seed)
    numbers = [library.random_next(chooser._random) for _ in range(100)]
    assert numbers == state.random(100).tolist()
    chooser.close()


def test_exponentials_are_rounded_once() -> None:
    """The two of all floats from -104 to 0 that are hardest to round, and some others."""
    mpmath = pytest.importorskip("mpmath")
    hard = [float.fromhex(text) for text in ("-0x1.e1dbe2p-8", "-0x1.d2259ap+3")]
    others = -np.random.default_rng(0).exponential(10, 300)
    scores = np.float32([0.0, *hard, *others])
    with mpmath.workprec(200):
        for score, ours in zip(scores.tolist(), exponentials(scores).tolist(), strict=True):
            exact = mpmath.exp(score)
            step = math.ulp(ours) * 2**29
            assert abs(exact - ours) <= step / 2
