"""Sampling on the device, its source built for the host, against serving/sampling.py."""

import ctypes

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from serving.sampling import (
    IntArray,
    SamplingParameters,
    choice_seed,
    distribution,
    random_state,
    sample,
    warp,
)
from serving.tensorrt.sampling.parameters import ROW, device_rows
from serving.tensorrt.sampling.sampler import LARGEST_VOCABULARY, WORKSPACE_BYTES
from tests.serving.tensorrt.sampling.host_build import HostBuild, rows_of

NONE = np.array([], np.int64)
GREEDY = SamplingParameters()
SHAPES = [(1, 1), (1, 5), (3, 2), (2, 64), (1, 512)]  # blocks, threads

FILTERS = [
    SamplingParameters(temperature=0.7),
    SamplingParameters(temperature=1.0, top_k=1),
    SamplingParameters(temperature=1.3, top_k=5),
    SamplingParameters(temperature=1.0, top_k=10**12),
    SamplingParameters(temperature=1.0, top_p=0.9),
    SamplingParameters(temperature=0.5, top_p=0.3),
    SamplingParameters(temperature=1.0, top_p=1e-20),
    SamplingParameters(temperature=1.0, top_p=1 - 1e-12),
    SamplingParameters(temperature=1.0, min_p=0.05),
    SamplingParameters(temperature=1.0, min_p=1.0),
    SamplingParameters(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
    SamplingParameters(temperature=2.0, top_k=300, top_p=0.5),
    SamplingParameters(temperature=1.5, top_p=0.8, min_p=0.1),
]


def normal(seed: int, *shape: int, spread: float = 3.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def kept_on_host(
    logits: npt.NDArray[np.float32], parameters: SamplingParameters
) -> npt.NDArray[np.bool_]:
    return warp(logits, parameters) > -np.inf


def chi_square_is_likely(tokens: IntArray, expected: npt.NDArray[np.float64]) -> bool:
    """Whether frequencies pass at 1 in 1000; tokens expected less than 5 times count as one."""
    counts, expected = np.bincount(tokens, minlength=len(expected)), expected * len(tokens)
    assert not counts[expected == 0].any()
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    # Wilson and Hilferty's approximation of the quantile; 3.09 is the normal distribution's.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    return bool(((counts - expected) ** 2 / expected).sum() < limit)


# Random123's known answers (kat_vectors, "philox4x32 10"): counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(
    host: HostBuild, counter: list[int], key: list[int], expected: list[int]
) -> None:
    words = (ctypes.c_uint32 * 4)(*counter)
    host.library.host_philox(words, ctypes.c_uint64(key[1] << 32 | key[0]))
    assert list(words) == expected


def test_exponential_and_logarithm_are_right_to_the_last_place(host: HostBuild) -> None:
    x = np.concatenate((-np.geomspace(1e-30, 103, 100_000), [0.0])).astype(np.float32)
    ours = x.copy()
    host.library.host_exponential(ours.ctypes.data_as(ctypes.c_void_p), len(x))
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(ours - exact) / np.spacing(exact.astype(np.float32))).max() < 1.0
    assert (np.diff(ours[np.argsort(x)]) >= 0).all(), "not monotone"

    x = np.concatenate((-np.geomspace(2.0**-65, 1 - 2.0**-24, 100_000), [-(1 - 2.0**-24)]))
    x = x.astype(np.float32)
    ours = x.copy()
    host.library.host_logarithm_of_1_plus(ours.ctypes.data_as(ctypes.c_void_p), len(x))
    exact = np.log1p(x.astype(np.float64))
    assert (np.abs(ours - exact) / np.spacing(np.abs(exact).astype(np.float32))).max() < 3.0


def test_every_float16_is_read_right(host: HostBuild) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    ours = np.zeros(2**16, np.float32)
    pointers = bits.ctypes.data_as(ctypes.c_void_p), ours.ctypes.data_as(ctypes.c_void_p)
    host.library.host_values_of_float16(*pointers, len(bits))
    np.testing.assert_array_equal(ours, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(ours), bits >= 2**15)


@pytest.mark.parametrize(("blocks", "threads"), SHAPES)
@pytest.mark.parametrize("vocab", [1, 2, 255, 257, 151_936])
def test_greedy_is_argmax(host: HostBuild, vocab: int, blocks: int, threads: int) -> None:
    logits = normal(vocab, 3, vocab)
    logits[1] = np.round(logits[1])  # ties
    logits[2] = -np.inf
    tokens = host.sample(logits, rows_of(GREEDY, n=3), blocks=blocks, threads=threads)
    assert tokens.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("parameters", [GREEDY, FILTERS[10]], ids=["greedy", "filters"])
def test_half_types_are_their_float32(
    host: HostBuild, dtype: str, parameters: SamplingParameters
) -> None:
    halves = normal(1, 50, 333).astype(getattr(ml_dtypes, dtype, np.float16))
    tokens = host.sample(halves.view(np.uint16), rows_of(parameters, n=50), dtype)
    expected = host.sample(halves.astype(np.float32), rows_of(parameters, n=50))
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("vocab", [1, 7, 300, 151_936])
@pytest.mark.parametrize("parameters", FILTERS, ids=str)
def test_the_same_tokens_are_kept(
    host: HostBuild, parameters: SamplingParameters, vocab: int
) -> None:
    for spread in (0.1, 1.0, 5.0):
        logits = normal(vocab, vocab, spread=spread)
        ours, expected = host.kept(logits, parameters), kept_on_host(logits, parameters)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.37, 0.5, 0.7, 0.81, 0.99])
@pytest.mark.parametrize("top_k", [0, 3, 9])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_of_equal_tokens_the_same_are_kept(
    host: HostBuild, top_p: float, top_k: int, min_p: float
) -> None:
    parameters = SamplingParameters(temperature=1.0, top_p=top_p, top_k=top_k, min_p=min_p)
    random = np.random.default_rng(3)
    for spread in (0, 1, 3):
        for _ in range(50):
            logits = random.integers(-spread, spread + 1, 40).astype(np.float32)
            ours, expected = host.kept(logits, parameters), kept_on_host(logits, parameters)
            np.testing.assert_array_equal(ours, expected)


def test_kept_sets_differ_only_within_rounding_of_top_p(host: HostBuild) -> None:
    """numpy's exponential and sum may differ from ours in the last place, and with them the border.

    Borders are put between float32's neighbours of a sum, where that is likeliest.
    """
    random = np.random.default_rng(5)
    for _ in range(500):
        logits = normal(int(random.integers(2**31)), 200)
        exponentials = np.exp(logits - logits.max())
        ascending = np.sort(exponentials / exponentials.sum()).astype(np.float64)
        sums = ascending.cumsum()
        top_p = float(1 - sums[random.integers(190)])
        parameters = SamplingParameters(temperature=1.0, top_p=top_p)
        ours, expected = host.kept(logits, parameters), kept_on_host(logits, parameters)
        assert (ours != expected).sum() <= 1


@pytest.mark.parametrize("parameters", [FILTERS[i] for i in (0, 2, 4, 8, 10, 12)], ids=str)
def test_frequencies_follow_the_distribution(
    host: HostBuild, parameters: SamplingParameters
) -> None:
    n, logits = 20_000, normal(2, 60, spread=2.0)
    rows = rows_of(parameters, seed=2026, n=n)
    tokens = host.sample(np.tile(logits, (n, 1)), rows)
    expected = distribution(logits, parameters, NONE, NONE)
    assert chi_square_is_likely(tokens, expected)


def test_frequencies_over_seeds_follow_the_distribution_too(host: HostBuild) -> None:
    n, logits = 20_000, normal(4, 60, spread=2.0)
    parameters = SamplingParameters(temperature=0.9)
    rows = device_rows([parameters] * n, range(n), [7] * n)
    tokens = host.sample(np.tile(logits, (n, 1)), rows)
    assert chi_square_is_likely(tokens, distribution(logits, parameters, NONE, NONE))


def test_a_large_vocabulary_is_drawn_from_everywhere(host: HostBuild) -> None:
    n, vocab = 60, 151_936
    rows = rows_of(SamplingParameters(temperature=1.0), n=n)
    tokens = host.sample(np.zeros((n, vocab), np.float32), rows)
    assert len(set(tokens.tolist())) > n - 3
    assert 0.35 < (tokens < vocab // 2).mean() < 0.65


def test_the_chi_square_test_sees_a_wrong_distribution(host: HostBuild) -> None:
    n, logits = 20_000, normal(2, 60, spread=2.0)
    tokens = host.sample(
        np.tile(logits, (n, 1)), rows_of(SamplingParameters(temperature=0.7), seed=2026, n=n)
    )
    for temperature in (0.65, 0.75):
        other = SamplingParameters(temperature=temperature)
        assert not chi_square_is_likely(tokens, distribution(logits, other, NONE, NONE))


@pytest.mark.parametrize("vocab", [1, 257, 5000])
@pytest.mark.parametrize("parameters", FILTERS[::3], ids=str)
def test_blocks_and_threads_change_nothing(
    host: HostBuild, parameters: SamplingParameters, vocab: int
) -> None:
    logits = normal(9, vocab, spread=1.0)
    kept = host.kept(logits, parameters)
    tokens = host.sample(np.tile(logits, (4, 1)), rows_of(parameters, n=4))
    for blocks, threads in SHAPES:
        np.testing.assert_array_equal(host.kept(logits, parameters, blocks, threads), kept)
        others = host.sample(
            np.tile(logits, (4, 1)), rows_of(parameters, n=4), blocks=blocks, threads=threads
        )
        np.testing.assert_array_equal(others, tokens)


def test_a_row_depends_on_nothing_else_in_the_batch(host: HostBuild) -> None:
    logits = normal(6, 20, 500, spread=1.0)
    chosen = [FILTERS[i % len(FILTERS)] for i in range(20)]
    seeds = [choice_seed(i % 3) for i in range(20)]
    rows = device_rows(chosen, seeds, [0] * 20)
    order = np.random.default_rng(0).permutation(20)
    moved = rows[order].copy()
    first = host.sample(logits, rows)
    second = host.sample(logits, rows)
    assert (first != second).any()
    others = [host.sample(np.ascontiguousarray(logits[order]), moved) for _ in range(2)]
    np.testing.assert_array_equal(others[0], first[order])
    np.testing.assert_array_equal(others[1], second[order])
    # A sequence that moves to another row goes on with the number of tokens that it has.
    again = host.sample(logits, device_rows(chosen, seeds, [1] * 20))
    np.testing.assert_array_equal(again, second)


def test_every_token_is_counted(host: HostBuild) -> None:
    rows, lengths = device_rows([GREEDY, FILTERS[0]], [0, 0], [5, 7]), np.array([3, 9])
    host.sample(normal(0, 2, 10), rows, blocks=2, threads=4, lengths=lengths)
    assert rows["chosen"].tolist() == [6, 8]
    assert lengths.tolist() == [4, 10]


@pytest.mark.parametrize("parameters", [GREEDY, *FILTERS], ids=str)
def test_the_only_possible_token_is_taken(host: HostBuild, parameters: SamplingParameters) -> None:
    logits = np.full((3, 999), -np.inf, np.float32)
    logits[[0, 1, 2], [0, 500, 998]] = [-1e30, 0, 1e30]
    tokens = host.sample(logits, rows_of(parameters, n=3))
    assert tokens.tolist() == [0, 500, 998]


@pytest.mark.parametrize("parameters", [GREEDY, FILTERS[0], FILTERS[10]], ids=str)
def test_nan_is_no_token(host: HostBuild, parameters: SamplingParameters) -> None:
    logits = normal(0, 3, 40)
    logits[1, 17] = np.nan
    logits[2, 3] = -np.nan
    tokens = host.sample(logits, rows_of(parameters, n=3))
    assert tokens[0] >= 0
    assert tokens[1:].tolist() == [-1, -1]


def test_an_infinite_logit_is_the_token(host: HostBuild) -> None:
    logits = normal(0, 1, 40)
    logits[0, [20, 30]] = np.inf
    assert host.sample(logits, rows_of(FILTERS[10])).tolist() == [20]


def test_minus_zero_equals_zero(host: HostBuild) -> None:
    logits = np.float32([[-1, -0.0, 0.0, -0.0]])
    assert host.sample(logits, rows_of(GREEDY)).tolist() == [1]


def test_one_token_kept_is_what_the_host_samples(host: HostBuild) -> None:
    logits = normal(8, 30, 1000)
    parameters = SamplingParameters(temperature=1.0, top_k=1)
    tokens = host.sample(logits, rows_of(parameters, n=30))
    expected = [sample(row, parameters, NONE, NONE, random_state(0)) for row in logits]
    assert tokens.tolist() == expected


def test_the_largest_vocabulary_fits_the_fixed_point_sums(host: HostBuild) -> None:
    logits = np.zeros(LARGEST_VOCABULARY, np.float32)
    parameters = SamplingParameters(temperature=1.0, top_p=0.5)
    kept = host.kept(logits, parameters)
    np.testing.assert_array_equal(kept, kept_on_host(logits, parameters))


def test_structures_are_as_large_as_python_says(host: HostBuild) -> None:
    assert host.library.host_parameters_bytes() == ROW.itemsize
    assert host.library.host_workspace_bytes() == WORKSPACE_BYTES
