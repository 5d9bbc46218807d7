"""Stages of a decoder, built one by one: each is an engine that keeps the contract of stages."""

from pathlib import Path

import pytest

from engines.passes.pipeline_stages import split_into_stages
from engines.tensorrt.builder import build
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import mend
from engines.tensorrt.profiles import engine_steps, step_profile
from engines.tensorrt.verifier import verify
from tests.engines.tensorrt.decoder_graph import CAUSAL, WIDTH, WINDOW, decoder
from tests.engines.tensorrt.test_network import CAPACITY, parsed

pytest.importorskip("tensorrt_rtx")


def test_every_stage_builds(tmp_path: Path) -> None:
    for number, stage in enumerate(split_into_stages(decoder(CAUSAL, WINDOW, dtype="float16"), 2)):
        directory = tmp_path / str(number)
        directory.mkdir()
        built = build(stage.model, directory, target="tensorrt-rtx", max_length=64, batch=3)
        assert (directory / built.name).stat().st_size > 50_000


def test_hidden_states_have_the_shape_of_the_tokens() -> None:
    stage = split_into_stages(decoder(*[CAUSAL] * 12, dtype="float16"), 4)[3].model
    lower(stage, CAPACITY)
    network = parsed(stage)
    mend(network, stage)
    verify(network, stage)  # layers 9 to 11: more than it has inputs
    assert [network.definition.get_input(i).name for i in range(5)] == [
        "input_ids",
        "past_lengths",
        "logits_positions",
        "hidden_states.2.0",
        "past_key_values.9.key",
    ]
    profiles = [step_profile(network, steps) for steps in engine_steps(prefill_chunk=8, batch=3)]
    shapes = [[tuple(s) for s in each.get_shape("hidden_states.2.0")] for each in profiles]
    assert shapes == [
        [(1, 1, WIDTH), (1, 8, WIDTH), (1, 8, WIDTH)],
        [(1, 1, WIDTH), (3, 1, WIDTH), (3, 1, WIDTH)],
    ]
