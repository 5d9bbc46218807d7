"""Check that an attention sees as many entries as are valid, and no others."""

from typing import Any

from engines.tensorrt.network import Network
from engines.tensorrt.tensors import VerificationError, origins
from serving.contract import INPUT_IDS, PAST_LENGTHS


def verify_lengths(network: Network, where: str, lengths: Any, producers: dict[str, Any]) -> None:
    """KV lengths are the past lengths plus the number of new tokens. Raises VerificationError."""
    if not _is_total(network, lengths, producers):
        raise VerificationError(
            f"the KV lengths of {where} are not {PAST_LENGTHS} plus the number of new tokens"
        )


def _is_total(network: Network, tensor: Any, producers: dict[str, Any]) -> bool:
    layer = _source(tensor, producers)
    if layer is None or layer.type.name != "ELEMENTWISE":
        return False
    layer.__class__ = network.library.IElementWiseLayer
    operands = [layer.get_input(0), layer.get_input(1)]
    added = [operand for operand in operands if PAST_LENGTHS not in origins(operand, producers)]
    return (
        layer.op == network.library.ElementWiseOperation.SUM
        and len(added) == 1
        and _counts_new_tokens(network, added[0], producers)
    )


def _counts_new_tokens(network: Network, tensor: Any, producers: dict[str, Any]) -> bool:
    """Whether a tensor is the size of axis 1 of the token ids, alone."""
    layer = _source(tensor, producers)
    if layer is None or layer.type.name != "SLICE":
        return False
    layer.__class__ = network.library.ISliceLayer
    shape = _source(layer.get_input(0), producers)
    return (
        (tuple(layer.start), tuple(layer.shape)) == ((1,), (1,))
        and shape is not None
        and shape.type.name == "SHAPE"
        and shape.get_input(0).name == INPUT_IDS
    )


def _source(tensor: Any, producers: dict[str, Any]) -> Any:
    """The layer that computes what a tensor is a cast or a view of; None for a network's input."""
    return producers.get(origins(tensor, producers)[-1])
