"""Tensor parallelism: every rank has some heads and MLP channels of every layer.

The scheme is Megatron-LM's (Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language
Models Using Model Parallelism", 2019). Weights that make heads or channels are split by columns,
with their biases, and the KV buffers by heads. Those that read them are split by rows; their
products are parts of sums, which an AllReduce adds up before the bias, that all ranks have whole.
Embedding, norms and LM head are whole on every rank, so that each has the same logits.
"""

from dataclasses import dataclass

import onnx_ir as ir

from engines.passes.all_reduce import sum_over_ranks
from engines.pruning import axes
from engines.pruning.axes import Cut, IndivisibleError, UnmatchedError
from engines.pruning.channels import has_experts
from engines.pruning.layers import last_linears
from engines.pruning.removal import remove
from engines.pruning.slicing import Slicing
from serving.contract import LOGITS

_HEADS, _CHANNELS = -3, -1


@dataclass(frozen=True)
class Share:
    """What one rank has of everything that is split."""

    rank: int
    ranks: int

    def of(self, count: int, what: str) -> tuple[int, ...]:
        """The rank's indices of ``count`` things in a row. Raises IndivisibleError."""
        each, rest = divmod(count, self.ranks)
        if rest:
            raise IndivisibleError(f"{count} {what} can't be divided by {self.ranks}")
        return tuple(range(self.rank * each, (self.rank + 1) * each))


def split_into_ranks(model: ir.Model, ranks: int) -> list[ir.Model]:
    """The graphs of all ranks; ``model``, a standard graph of float or Q/DQ weights, stays as is.

    Weights are cut when they are read, so that they take no memory besides the whole. Raises
    ValueError for a model with anything that isn't split: more than one rank would compute it.
    """
    if ranks == 1:
        return [model.clone()]
    return [_split(model.clone(), Share(rank, ranks)) for rank in range(ranks)]


def _split(model: ir.Model, share: Share) -> ir.Model:
    try:
        _Splitter(model, share).split()
    except UnmatchedError as error:
        raise ValueError(
            f"it can't be split over {share.ranks} ranks ({error}), so leave --tensor-parallel out"
        ) from error
    return model


class _Splitter:
    """Splits one graph, and knows what of it is split already."""

    def __init__(self, model: ir.Model, share: Share) -> None:
        self.model, self.share = model, share
        self.products = [node for node in model.graph if _multiplies_with_weight(node)]
        self.done: set[ir.Node] = set()

    def split(self) -> None:
        """Split all heads, then the channels of what is left. Raises UnmatchedError."""
        if has_experts(self.model):
            raise UnmatchedError("its experts aren't linear layers of their own")
        attentions = [node for node in self.model.graph if node.op_type == "Attention"]
        if not attentions:
            raise UnmatchedError("no attention was found in it")
        for node in attentions:
            self._apply(self._heads(node))
        refusals = {
            node: refusal
            for node in self.products
            if node not in self.done and (refusal := self._split_channels(node))
        }
        self._check_all_are_split(refusals)

    def _heads(self, attention: ir.Node) -> Slicing:
        """What goes with the rank's heads of one Attention node."""
        heads, groups = (axes.size(attention.inputs[index], _HEADS) for index in (0, 1))
        self.share.of(groups, f"KV heads of {attention.name}")
        kept = self.share.of(heads, f"heads of {attention.name}")
        return Slicing(attention.outputs[0], Cut(_HEADS, kept))

    def _split_channels(self, product: ir.Node) -> UnmatchedError | None:
        """Split the channels that a linear layer reads, if linear layers alone make them."""
        try:
            source = product.inputs[0]
            assert source is not None
            kept = self.share.of(axes.size(source, _CHANNELS), f"inputs of {product.name}")
            slicing = Slicing(source, Cut(_CHANNELS, kept))
            if slicing.attentions or not slicing.writers:
                raise UnmatchedError(f"{product.name} doesn't read an MLP's channels")
        except UnmatchedError as error:
            return error
        self._apply(slicing)
        return None

    def _apply(self, slicing: Slicing) -> None:
        touched = {*slicing.readers, *slicing.writers}
        if not slicing.readers or not slicing.writers:
            raise UnmatchedError("heads were found that no linear layer makes or reads")
        if len(touched) < len(slicing.readers) + len(slicing.writers) or touched & self.done:
            raise UnmatchedError("a linear layer both makes and reads heads or channels")
        remove(self.model, slicing, {})
        for node in slicing.readers:
            sum_over_ranks(self.model, node.outputs[0], self.share.ranks)
        self.done |= touched

    def _check_all_are_split(self, refusals: dict[ir.Node, UnmatchedError]) -> None:
        """Every linear layer is split, but for what makes the logits."""
        logits = next(value for value in self.model.graph.outputs if value.name == LOGITS)
        whole = {*self.done, *last_linears(logits, self.products)}
        left = [node for node in refusals if node not in whole]
        if left:
            # A count that doesn't divide is in the way; others reading the same never were.
            reasons = sorted(
                (refusals[node] for node in left),
                key=lambda reason: not isinstance(reason, IndivisibleError),
            )
            raise UnmatchedError(f"{left[0].name} isn't split: {reasons[0]}")


def _multiplies_with_weight(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return weight is not None and axes.is_weight(weight)
