"""Checks on an encoder-decoder's traced graphs: the contract, attention, every weight."""

from collections import Counter

import onnx_ir as ir
from transformers import PreTrainedModel

from exporter.structure import (
    GraphError,
    WeightAccount,
    account_weights,
    check_caches,
    check_interface,
    check_operators,
)
from serving.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    cross_name,
    past_name,
    present_name,
)


def check_encoder(model: ir.Model, layers: int) -> None:
    """Raise GraphError unless a graph gives a source's keys and values to so many layers."""
    cross = [cross_name(layer, part) for layer in range(layers) for part in PARTS]
    check_operators(model.graph)
    check_interface(model.graph, [INPUT_IDS, ATTENTION_MASK], cross)
    if "TensorScatter" in {node.op_type for node in model.graph}:
        raise GraphError("the encoder updates a cache")


def check_decoder(model: ir.Model, layers: int) -> None:
    """Raise GraphError unless a graph is the contract's, with a cache and a source in each layer.

    Each layer has two cache updates, and at least one Attention node over its cache.
    """
    graph = model.graph
    pairs = [(layer, part) for layer in range(layers) for part in PARTS]
    inputs = [INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, SOURCE_LENGTHS]
    inputs += [past_name(*pair) for pair in pairs] + [cross_name(*pair) for pair in pairs]
    check_operators(graph)
    check_interface(graph, inputs, [LOGITS, *(present_name(*pair) for pair in pairs)])
    check_caches(graph, layers)
    operators = Counter(node.op_type for node in graph)
    if operators["Attention"] < layers:
        raise GraphError(
            f"{operators['Attention']} Attention nodes for {layers} layers with a cache: the "
            "attention code of this architecture isn't understood"
        )


def account_both(encoder: ir.Model, decoder: ir.Model, model: PreTrainedModel) -> WeightAccount:
    """Which of the model's weights two graphs use; raises GraphError as account_weights does."""
    state = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
    accounts = [account_weights(graph, state) for graph in (encoder, decoder)]
    used = {name for account in accounts for name in account.used}
    return WeightAccount(tuple(sorted(used)), tuple(sorted(set(state) - used)))
