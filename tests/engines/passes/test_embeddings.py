"""The last hidden states as an output: that it is all that changes, in every form of a graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from engines import onnxruntime as onnxruntime_target
from engines.passes.embeddings import expose_embeddings, last_hidden_states
from engines.passes.pipeline_stages import split_into_stages
from engines.quantization.apply import quantize
from engines.quantization.recipe import Recipe
from tests.engines.passes.graphs import Arrays, assert_close, feeds, operators, run
from tests.engines.tensorrt.decoder_graph import CAUSAL, WINDOW
from tests.engines.tensorrt.decoder_graph import decoder as small_decoder

TOKENS = np.random.default_rng(4).integers(3, 500, (1, 21))


def test_an_output_is_added_and_nothing_else() -> None:
    before, after = small_decoder(CAUSAL, WINDOW), small_decoder(CAUSAL, WINDOW)
    expose_embeddings(after)
    assert operators(after) == operators(before)
    given = [value.name for value in after.graph.outputs]
    assert given == [*(value.name for value in before.graph.outputs), "embeddings"]
    for past, sequence in (([0], 5), ([6, 0], 1)):
        inputs = feeds(before, past=past, sequence=sequence)
        got = run(after, inputs)
        states = got.pop("embeddings")
        assert_close(got, run(before, inputs), tolerance=0)
        head = after.graph.initializers["head"].const_value
        assert head is not None
        np.testing.assert_allclose(states @ head.numpy(), got["logits"], atol=1e-5)


def test_only_the_last_stage_gives_them() -> None:
    first, last = (stage.model for stage in split_into_stages(small_decoder(CAUSAL, WINDOW), 2))
    outputs = [value.name for value in first.graph.outputs]
    for stage in (first, last):
        expose_embeddings(stage)
    assert [value.name for value in first.graph.outputs] == outputs
    assert last.graph.outputs[-1].name == "embeddings"


def prefill(model: ir.Model) -> Arrays:
    """What a graph makes of ``TOKENS``, with logits of the last one."""
    inputs: Arrays = {
        "input_ids": TOKENS,
        "past_lengths": np.array([0]),
        "logits_positions": np.array([[TOKENS.shape[1] - 1]]),
    }
    for value in model.graph.inputs[3:]:
        shape = (1, value.shape[1], TOKENS.shape[1], value.shape[3])
        inputs[value.name] = np.zeros(shape, value.dtype.numpy())
    return run(model, inputs)


RECIPES = {"float32": Recipe(), "int8": Recipe(bits=8), "w8a8": Recipe(bits=8, activations=True)}
LEAST_COSINE = {"float32": 1 - 1e-6, "int8": 0.98, "w8a8": 0.98}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("architecture", ["llama", "gemma"])  # head of its own; tied embedding
def test_lowered_graphs_give_what_the_head_gets_in_transformers(
    architecture: str,
    recipe: str,
    decoder: Callable[[str], ir.Model],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = decoder(architecture)
    quantize(model, RECIPES[recipe], [TOKENS[0]], tmp_path)
    states = last_hidden_states(model)
    assert states is not None
    assert states.shape is not None
    assert states.shape[2] == 64
    without = model.clone()
    onnxruntime_target.lower(model)
    passes = [each for each in onnxruntime_target.PASSES if each is not expose_embeddings]
    monkeypatch.setattr(onnxruntime_target, "PASSES", passes)
    onnxruntime_target.lower(without)
    assert operators(model) == operators(without)
    assert model.graph.initializers.keys() == without.graph.initializers.keys()
    got = prefill(model)
    found = got.pop("embeddings")[0]
    assert_close(got, prefill(without), tolerance=0)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint(architecture)).eval()
    with torch.no_grad():
        output = reference(input_ids=torch.from_numpy(TOKENS), output_hidden_states=True)
    expected = output.hidden_states[-1][0].numpy()
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / lengths).min() > LEAST_COSINE[recipe]
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=0.05)
    if recipe == "float32":
        np.testing.assert_allclose(found, expected, atol=1e-4)
