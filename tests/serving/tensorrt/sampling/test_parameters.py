"""Which parameters the device has, and how it gets them."""

import numpy as np
import pytest

from serving.bad_words import BadWords
from serving.sampling import SamplingParameters, choice_seed
from serving.tensorrt.sampling.parameters import device_rows, runs_on_device
from serving.tensorrt.sampling.sampler import blocks_of_a_row


def test_greedy_and_filters_run_on_the_device() -> None:
    assert runs_on_device(SamplingParameters())
    assert runs_on_device(SamplingParameters(0.7, top_k=5, top_p=0.9, min_p=0.1, seed=3))


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(repetition_penalty=1.1),
        SamplingParameters(presence_penalty=-0.5),
        SamplingParameters(frequency_penalty=0.5),
        SamplingParameters(logprobs=0),
        SamplingParameters(logit_bias={3: 0.5}),
        SamplingParameters(bad_words=BadWords([[3]])),
    ],
)
def test_what_needs_tokens_or_logits_runs_on_the_host(parameters: SamplingParameters) -> None:
    assert not runs_on_device(parameters)


def test_masked_eos_tokens_run_on_the_host() -> None:
    assert not runs_on_device(SamplingParameters(), min_new_tokens=1)


def test_constrained_tokens_run_on_the_host() -> None:
    assert not runs_on_device(SamplingParameters(), is_constrained=True)


def test_seeds_of_any_size_have_a_choice_seed() -> None:
    seeds = [choice_seed(seed) for seed in (0, 1, 2**64, 2**64 + 1)]
    assert seeds == [choice_seed(seed) for seed in (0, 1, 2**64, 2**64 + 1)]
    assert len(set(seeds)) == 4
    assert choice_seed(None) != choice_seed(None)


def test_rows_have_float32_parameters() -> None:
    sampling = SamplingParameters(temperature=0.1, top_k=2**40, top_p=0.9, min_p=0.3)
    (row,) = device_rows([sampling], [2**64 - 1], [3])
    assert row["temperature"] == np.float32(0.1)
    assert row["top_k"] == 2**31 - 1
    assert row["beyond_top_p"] == np.float32(1 - 0.9)
    assert row["min_p"] == np.float32(0.3)
    assert (row["seed"], row["chosen"]) == (2**64 - 1, 3)


def test_blocks_fill_the_processors_and_no_more() -> None:
    assert blocks_of_a_row(rows=1, vocab=151_936, processors=132) == 132
    assert blocks_of_a_row(rows=5, vocab=151_936, processors=132) == 26
    assert blocks_of_a_row(rows=500, vocab=151_936, processors=132) == 1
    assert blocks_of_a_row(rows=1, vocab=513, processors=132) == 2
