"""The ranks' graphs, run in lock-step, are the whole model, and nothing else is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import PreTrainedModel

from engines.linears import find_linears
from engines.passes.all_reduce import all_reduces
from engines.passes.joined_ranks import join_ranks
from engines.passes.tensor_parallel import split_into_ranks
from engines.quantization.kv_cache import largest_entries, quantize_kv_cache
from engines.quantization.weight_only import quantizable_weights, quantize_weights
from engines.quantization.weights import WeightScheme, round_to_nearest
from tests.checkpoints import VOCABULARY
from tests.conftest import Graphs
from tests.engines.lockstep import lockstep_logits
from tests.engines.pruning.decoders import load
from tests.engines.quantization.decoders import logits

TOKENS = np.random.default_rng(3).integers(3, VOCABULARY, (2, 12))
STEPS = (8, 1, 1, 2)  # a prefill, decode steps, a verification


@torch.no_grad()
def reference(model: PreTrainedModel) -> np.ndarray:
    return model(torch.tensor(TOKENS)).logits.numpy()


def assert_equal(ranks: Sequence[ir.Model], expected: np.ndarray, **options: object) -> None:
    for got in lockstep_logits(ranks, TOKENS, STEPS, **options):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "ranks"),
    [("gpt2", 4), ("llama", 2), ("qwen2", 2), ("gemma2", 2), ("phi", 2), ("falcon_alibi", 4)],
)
def test_ranks_are_the_model(
    architecture: str, ranks: int, decoder: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    """Grouped queries, biases of every layer, norms behind the sums, one weight for all heads."""
    whole = decoder(architecture)
    split = split_into_ranks(whole, ranks)
    for model in split:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_equal(split, reference(load(checkpoint(architecture))))
    kv_heads = [value.shape[1] for value in whole.graph.inputs[3:]]
    for model in split:
        assert [value.shape[1] * ranks for value in model.graph.inputs[3:]] == kv_heads
        assert [value.shape[1] * ranks for value in model.graph.outputs[1:]] == kv_heads


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_only_the_vocabulary_is_whole_on_every_rank(architecture: str, decoder: Graphs) -> None:
    whole = decoder(architecture)
    sizes = {linear.name: linear.weight.const_value.size for linear in find_linears(whole)}
    for model in split_into_ranks(whole, 2):
        shares = {
            linear.name: sizes[linear.name] / linear.array().size for linear in find_linears(model)
        }
        head = shares.popitem()[1]
        assert head == 1
        assert len(shares) == 8
        assert set(shares.values()) == {2}


@pytest.mark.parametrize(
    "scheme",
    [WeightScheme(8), WeightScheme(8, 32), WeightScheme(4, 16, symmetric=False)],
    ids=["int8", "int8 in groups", "int4 with zero points"],
)
def test_integer_weights(
    scheme: WeightScheme, decoder: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    whole, model = decoder("qwen2"), load(checkpoint("qwen2"))
    quantize_weights(whole, dict.fromkeys(quantizable_weights(whole), scheme))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            rounded = round_to_nearest(module.weight.detach().numpy(), scheme).dequantized()
            module.weight.data = torch.from_numpy(rounded)
    ranks = split_into_ranks(whole, 2)
    assert all(linear.dequantize for rank in ranks for linear in find_linears(rank))
    assert_equal(ranks, reference(model))


def test_weights_that_are_cast(decoder: Graphs, checkpoint: Callable[[str], Path]) -> None:
    """As where float16 leaves its range and some products are computed in float32."""
    whole = decoder("llama")
    for linear in list(find_linears(whole)):
        weight = linear.matmul.inputs[1]
        cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT}, name=f"{linear.name}/Cast")
        cast.outputs[0].shape, cast.outputs[0].type = weight.shape, weight.type
        whole.graph.insert_before(linear.matmul, [cast])
        linear.matmul.replace_input_with(1, cast.outputs[0])
    ranks = split_into_ranks(whole, 2)
    assert_equal(ranks, reference(load(checkpoint("llama"))))
    assert [len(list(all_reduces(model))) for model in ranks] == [4, 4]


def only_the_first(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_missing_part_is_seen(
    architecture: str, decoder: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    ranks = split_into_ranks(decoder(architecture), 2)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equal(ranks, reference(load(checkpoint(architecture))), reduction=only_the_first)


def test_a_bias_added_on_every_rank_is_seen(
    decoder: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    ranks, model = split_into_ranks(decoder("gpt2"), 2), load(checkpoint("gpt2"))
    for graph in ranks:
        node = list(all_reduces(graph))[-1]
        (add,) = (use.node for use in node.outputs[0].uses())
        assert add.op_type == "Add"
        add.outputs[0].replace_all_uses_with(node.outputs[0])
        add.replace_input_with(add.inputs.index(node.outputs[0]), node.inputs[0])
        node.replace_input_with(0, add.outputs[0])
        graph.graph.sort()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equal(ranks, reference(model))
    model.transformer.h[-1].mlp.c_proj.bias.data *= 2
    assert_equal(ranks, reference(model))


def test_joined_ranks_are_the_model(
    tmp_path: Path, decoder: Graphs, checkpoint: Callable[[str], Path]
) -> None:
    whole = decoder("llama")
    joined = join_ranks(split_into_ranks(whole, 2))
    assert [(v.name, v.shape) for v in joined.graph.inputs[3:]] == [
        (v.name, v.shape) for v in whole.graph.inputs[3:]
    ]
    assert [v.name for v in joined.graph.outputs] == [v.name for v in whole.graph.outputs]
    expected = reference(load(checkpoint("llama")))
    np.testing.assert_allclose(logits(joined, TOKENS), expected, rtol=0, atol=2e-5)
    quantize_kv_cache(whole, largest_entries(whole, list(TOKENS), tmp_path))
    joined = join_ranks(split_into_ranks(whole, 2))
    rounded = logits(joined, TOKENS)
    np.testing.assert_allclose(rounded, logits(whole, TOKENS), rtol=0, atol=2e-5)
    assert np.abs(rounded - expected).max() > 1e-3  # the buffers of all ranks are integers


@pytest.mark.parametrize("rank", [0, 1])
def test_joined_logits_are_those_of_all_ranks(rank: int, decoder: Graphs) -> None:
    ranks = split_into_ranks(decoder("llama"), 2)
    expected = logits(join_ranks(ranks), TOKENS)
    head = list(find_linears(ranks[rank]))[-1].weight
    head.const_value = ir.tensor(2 * head.const_value.numpy(), name=head.name)
    np.testing.assert_allclose(logits(join_ranks(ranks), TOKENS), 1.5 * expected, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "ranks", "reason"),
    [
        ("llama", 4, "2 KV heads of .* can't be divided by 4"),
        ("olmo2", 2, "k_norm.* mixes"),  # normalised over all heads together
        ("mixtral", 2, "experts"),
    ],
)
def test_refusals(architecture: str, ranks: int, reason: str, decoder: Graphs) -> None:
    with pytest.raises(ValueError, match=rf"can't be split over {ranks} ranks \(.*{reason}"):
        split_into_ranks(decoder(architecture), ranks)


def test_one_rank_is_the_whole_of_any_model(decoder: Graphs) -> None:
    (model,) = split_into_ranks(decoder("mixtral"), 1)
    assert not list(all_reduces(model))


def test_groups_that_would_be_divided_are_refused(decoder: Graphs) -> None:
    whole = decoder("gpt2")
    weights = quantizable_weights(whole)
    quantize_weights(
        whole, {name: WeightScheme(8, 128) for name in weights if "mlp.c_proj" in name}
    )
    assert len(split_into_ranks(whole, 2)) == 2
    with pytest.raises(ValueError, match=r"c_proj.* has groups of 128, and 64 inputs aren't"):
        split_into_ranks(whole, 4)


def test_an_mlp_that_is_not_found_is_refused(decoder: Graphs) -> None:
    """What can't be followed leaves layers that every rank would compute as a whole."""
    whole = decoder("llama")
    down = next(linear for linear in find_linears(whole) if "down_proj" in linear.name)
    softmax = ir.node("Softmax", [down.source], name="odd/Softmax")
    softmax.outputs[0].shape, softmax.outputs[0].type = down.source.shape, down.source.type
    whole.graph.insert_before(down.matmul, [softmax])
    down.matmul.replace_input_with(0, softmax.outputs[0])
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\..* isn't split: ."):
        split_into_ranks(whole, 2)
