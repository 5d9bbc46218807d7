"""The optimisation profiles, and the check that finds one that doesn't take every step."""

from typing import Any

import pytest

from engines.tensorrt.network import Network
from engines.tensorrt.profiles import engine_steps, step_profile, verify_profile
from engines.tensorrt.tensors import VerificationError
from tests.engines.tensorrt.decoder_graph import CAUSAL
from tests.engines.tensorrt.test_network import mended

pytest.importorskip("tensorrt_rtx")
PREFILL, DECODE = engine_steps(prefill_chunk=8, batch=3)
CACHE = "past_key_values.0.key"


@pytest.fixture(scope="module")
def network() -> Network:
    return mended(CAUSAL)[0]


def test_profiles_are_one_row_of_a_prompt_and_one_token_of_every_row(network: Network) -> None:
    profiles = [step_profile(network, steps) for steps in (PREFILL, DECODE)]
    shapes = {
        name: [[tuple(shape) for shape in profile.get_shape(name)] for profile in profiles]
        for name in ("input_ids", "past_lengths", "logits_positions", CACHE)
    }
    assert shapes == {
        "input_ids": [[(1, 1), (1, 8), (1, 8)], [(1, 1), (3, 1), (3, 1)]],
        "past_lengths": [[(1,), (1,), (1,)], [(1,), (3,), (3,)]],
        "logits_positions": [[(1, 1), (1, 1), (1, 8)], [(1, 1), (3, 1), (3, 1)]],
        CACHE: [
            [(1, 2, 16, 16)] * 3,
            [(1, 2, 16, 16), (3, 2, 16, 16), (3, 2, 16, 16)],
        ],
    }


def test_a_single_row_has_room_for_another(network: Network) -> None:
    _, decode = engine_steps(prefill_chunk=8, batch=1)
    shapes = step_profile(network, decode).get_shape("past_lengths")
    assert [tuple(shape) for shape in shapes] == [(1,), (1,), (2,)]


@pytest.mark.parametrize("steps", [PREFILL, DECODE])
def test_profiles_cover_their_steps(network: Network, steps: Any) -> None:
    verify_profile(network, step_profile(network, steps), steps)


@pytest.mark.parametrize(
    ("steps", "name", "shapes"),
    [
        (PREFILL, "input_ids", [(1, 1), (1, 4), (1, 7)]),
        (PREFILL, "input_ids", [(1, 2), (1, 4), (1, 8)]),
        (PREFILL, "logits_positions", [(1, 1), (1, 1), (1, 1)]),
        (DECODE, "past_lengths", [(1,), (2,), (2,)]),
        (DECODE, CACHE, [(2, 2, 16, 16), (3, 2, 16, 16), (3, 2, 16, 16)]),
    ],
)
def test_a_profile_that_covers_less(
    network: Network, steps: Any, name: str, shapes: list[tuple[int, ...]]
) -> None:
    profile = step_profile(network, steps)
    profile.set_shape(name, *shapes)
    with pytest.raises(VerificationError, match=f"the {steps.name} profile takes '{name}' from"):
        verify_profile(network, profile, steps)


@pytest.mark.parametrize("usual", [0, 9])
def test_a_profile_that_expects_what_it_does_not_take(network: Network, usual: int) -> None:
    profile = step_profile(network, PREFILL)
    profile.set_shape("input_ids", (1, 1), (1, usual), (1, 8))
    with pytest.raises(VerificationError, match=rf"expects 'input_ids' as \(1, {usual}\)"):
        verify_profile(network, profile, PREFILL)


def test_a_profile_without_an_input(network: Network) -> None:
    profile = network.builder.create_optimization_profile()
    with pytest.raises(VerificationError, match="the decode profile has no shapes for 'input_ids'"):
        verify_profile(network, profile, DECODE)
