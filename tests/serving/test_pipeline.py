"""Stages behind one engine: a hand-written decoder, split, against the graph in one piece."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from engines import onnxruntime as onnxruntime_target
from engines.passes.pipeline_stages import split_into_stages
from serving.bundle import GraphInfo, LayerInfo, SpecialTokens
from serving.generation import Model
from serving.onnxruntime import OnnxRuntimeEngine
from serving.pipeline import HiddenBuffer, PipelineEngine
from tests.engines.tensorrt.decoder_graph import CAUSAL, DIM, KV_HEADS, VOCAB, WINDOW, decoder
from tests.serving.fixed_costs import FixedCosts

CAPACITY, SLOTS = 48, 2
LAYERS = (CAUSAL, WINDOW, CAUSAL)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [27, 18], [2, 2, 7, 1, 8]]

Reference = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Logits [n, vocab] of all positions at once, by the standard graph."""
    session = onnxruntime.InferenceSession(ir.to_proto(decoder(*LAYERS)).SerializeToString())
    buffers = [value.name for value in session.get_inputs() if "past_key" in value.name]

    def logits(ids: list[int]) -> np.ndarray:
        empty = np.zeros((1, KV_HEADS, CAPACITY, DIM), np.float32)
        feeds = dict.fromkeys(buffers, empty) | {
            "input_ids": np.array([ids]),
            "past_lengths": np.array([0]),
            "logits_positions": np.arange(len(ids))[None],
        }
        return np.asarray(session.run(["logits"], feeds)[0])[0]

    return logits


@pytest.fixture(params=[2, 3])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> PipelineEngine:
    layer = LayerInfo(kv_heads=KV_HEADS, key_dim=DIM, value_dim=DIM)
    graph = GraphInfo(
        contract_version=1,
        vocab_size=VOCAB,
        dtype="float32",
        layers=(layer,) * len(LAYERS),
        max_length=CAPACITY,
    )
    engines = []
    for number, stage in enumerate(split_into_stages(decoder(*LAYERS), request.param)):
        directory = tmp_path / str(number)
        directory.mkdir()
        onnxruntime_target.lower(stage.model)
        onnxruntime_target.write(stage.model, directory)
        engines.append(
            OnnxRuntimeEngine(
                directory / "model.onnx",
                graph,
                slots=SLOTS,
                capacity=CAPACITY,
                threads=1,
                weight_bytes=10 + number,
            )
        )
    return PipelineEngine(engines)


def model_of(engine: PipelineEngine, prefill_chunk: int) -> Model:
    return Model(engine, SpecialTokens(), None, None, prefill_chunk)


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_scores_are_those_of_the_graph(
    engine: PipelineEngine, reference: Reference, chunk: int
) -> None:
    with model_of(engine, chunk) as model:
        for ids in PROMPTS:
            np.testing.assert_allclose(model.logits(ids), reference(ids), atol=1e-5)


@pytest.mark.parametrize("speculation", [None, "prompt-lookup"])
def test_tokens_are_those_of_the_graph(
    engine: PipelineEngine, reference: Reference, speculation: Any
) -> None:
    """Three prompts share two slots: one slot moves, and drafts that don't hold are taken back."""
    with model_of(engine, 4) as model:
        model._step_costs = FixedCosts(0.0)
        tokens = list(
            model.generate(PROMPTS, max_new_tokens=30, speculation=speculation, stream=True)
        )
    if speculation:
        assert sum(token.drafted for token in tokens) > sum(token.speculated for token in tokens)
    for index, ids in enumerate(PROMPTS):
        own = [token.token_id for token in tokens if token.index == index]
        assert len(own) == 30
        logits = reference([*ids, *own[:-1]])[len(ids) - 1 :]
        assert own == logits.argmax(axis=-1).tolist()


def test_a_moved_slot_goes_on_in_every_stage(engine: PipelineEngine, reference: Reference) -> None:
    ids = PROMPTS[0]
    step = np.array([ids[:-1]])
    with engine:
        engine.step(step, np.array([0]), np.array([[0]]), 1)
        engine.cache.move(1, 0, len(ids) - 1)
        logits = engine.step(np.array([ids[-1:]]), np.array([len(ids) - 1]), np.array([[0]]))
    np.testing.assert_allclose(logits[0, 0], reference(ids)[-1], atol=1e-5)


def test_embeddings_come_from_the_last_stage(engine: PipelineEngine) -> None:
    """The head is the only thing behind them, so that they show in the logits."""
    ids = np.array([PROMPTS[0]])
    head = next(v for v in decoder(*LAYERS).graph.initializers.values() if v.name == "head")
    assert head.const_value is not None
    with engine:
        assert engine.hidden_size == head.const_value.shape[0]
        first = engine.embed(ids[:, :4], np.array([0]), 1)
        engine.embed(np.array([PROMPTS[2]]), np.array([0]), 0)
        rest = engine.embed(ids[:, 4:], np.array([4]), 1)
        logits = engine.step(ids, np.array([0]), np.arange(ids.shape[1])[None])
    states = np.concatenate([first, rest], axis=1)
    np.testing.assert_allclose(states @ head.const_value.numpy(), logits, atol=1e-5)


def test_buffers_are_the_stages_own_and_stay(engine: PipelineEngine) -> None:
    own = [stage.cache for stage in engine._stages]
    assert sorted(engine.cache.buffers) == [(i, p) for i in range(3) for p in ("key", "value")]
    assert [key for cache in own for key in cache.buffers] == list(engine.cache.buffers)
    assert engine.cache.nbytes == sum(cache.nbytes for cache in own)
    assert engine.cache.nbytes == SLOTS * CAPACITY * len(LAYERS) * 2 * KV_HEADS * DIM * 4
    assert engine.weight_bytes == sum(10 + number for number in range(len(own)))
    assert len(engine.cache.layers) == len(LAYERS)
    past = np.array([0])
    given = []
    for ids in ([1], [2]):
        hidden = engine._stages[0].hand_on(np.array([ids]), past, 0, {})
        given.append({name: array.ctypes.data for name, array in hidden.items()})
    assert given[0] == given[1]
    engine.close()


def test_tokens_beyond_the_capacity_never_reach_a_stage(engine: PipelineEngine) -> None:
    with engine, pytest.raises(ValueError, match="capacity of 48"):
        engine.step(np.array([[1, 2]]), np.array([CAPACITY - 1]), np.array([[0]]))


def test_a_hidden_buffer_is_one_piece_of_memory() -> None:
    buffer = HiddenBuffer((3, 2), "float16", 5)
    assert buffer.view(1, 5).shape == (1, 5, 3, 2)
    assert buffer.view(2, 1).ctypes.data == buffer.view(1, 5).ctypes.data
    assert buffer.view(2, 1).dtype == np.float16
    with pytest.raises(ValueError, match="reshape"):
        buffer.view(6, 1)
