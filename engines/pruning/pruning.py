"""Carrying out a pruning: structures first, then single weights of what is left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.linears import find_linears
from engines.pruning.axes import UnmatchedError
from engines.pruning.channels import has_experts, is_channel_reader, slice_channels
from engines.pruning.heads import slice_heads
from engines.pruning.importance import Importance, Statistics, most_important
from engines.pruning.layers import attention_sizes, find_layers, rank_layers, remove_layers
from engines.pruning.plan import Pruning
from engines.pruning.removal import Cuts, remove
from engines.pruning.sparsity import (
    largest,
    prunable_linears,
    two_largest_of_four,
    zero_weights,
)
from serving.errors import UserError

Masks = dict[str, npt.NDArray[np.bool_]]


@dataclass
class PruningReport:
    """What a pruning did to a graph."""

    parameters_before: int
    parameters_after: int = 0
    zeros: int = 0
    """Weights of pruned linear layers that are zero, among ``parameters_after``."""
    removed_layers: tuple[int, ...] = ()
    """As the checkpoint numbers them."""
    query_heads: tuple[int, ...] = ()
    """Of each layer that is left."""
    kv_heads: tuple[int, ...] = ()
    """Of each layer that is left; the KV buffers have as many."""
    channels: dict[str, int] = field(default_factory=dict)
    """Channels left, by the name of the weight that reads them."""

    @property
    def sparsity(self) -> float:
        """The fraction of the parameters left that was set to zero."""
        return self.zeros / max(self.parameters_after, 1)


def prune(
    model: ir.Model,
    pruning: Pruning,
    statistics: Statistics | None = None,
    layer_changes: Sequence[float] | None = None,
) -> PruningReport:
    """Prune a standard graph with float weights in place.

    ``statistics`` are those of the linear layers' inputs (engines/calibration.py), for the
    importance of heads and channels; ``layer_changes`` those of ``measure_layers``, for that of
    layers. Without them weights decide, and depth. Structures of zeros always go first.

    Raises UserError for what can't be pruned; the graph is of no more use then.
    """
    return _prune(model, pruning, statistics, layer_changes, {})


def masks(
    model: ir.Model,
    pruning: Pruning,
    statistics: Statistics | None = None,
    layer_changes: Sequence[float] | None = None,
) -> Masks:
    """For each initialiser that ``prune`` changes, what of it stays (True); ``model`` stays too.

    A checkpoint whose other weights are zero gives the logits of the pruned graph, and pruning that
    checkpoint in the same way loses nothing more.
    """
    pruned, cuts = model.clone(), Cuts()
    _prune(pruned, pruning, statistics, layer_changes, cuts)
    zeroed = {linear.name for linear in find_linears(pruned)}
    kept: Masks = {}
    for name, value in model.graph.initializers.items():
        assert value.shape is not None
        mask = np.zeros(value.shape.numpy(), bool)
        left = pruned.graph.initializers.get(name)
        if left is not None:
            indices = [np.arange(size) for size in mask.shape]
            for cut in cuts.get(name, []):
                indices[cut.axis] = indices[cut.axis][list(cut.kept)]
            mask[np.ix_(*indices)] = _stays(left) if name in zeroed else True
        if not mask.all():
            kept[name] = mask
    return kept


def _stays(weight: ir.Value) -> npt.NDArray[np.bool_] | bool:
    tensor = weight.const_value
    return tensor.numpy() != 0 if isinstance(tensor, ir.LazyTensor) else True


def _prune(
    model: ir.Model,
    pruning: Pruning,
    statistics: Statistics | None,
    layer_changes: Sequence[float] | None,
    cuts: Cuts,
) -> PruningReport:
    report = PruningReport(_parameters(model))
    importance = Importance(model, statistics)
    if pruning.layers:
        with _refusing("--prune-layers"):
            report.removed_layers = _prune_layers(model, pruning.layers, layer_changes)
    if pruning.heads is not None:
        with _refusing("--prune-heads"):
            for node in [node for node in model.graph if node.op_type == "Attention"]:
                remove(model, slice_heads(node, pruning.heads, importance), cuts)
    if pruning.channels is not None:
        with _refusing("--prune-channels"):
            report.channels = _prune_channels(model, pruning.channels, importance, cuts)
    if pruning.weights is not None or pruning.two_of_four:
        with _refusing("--prune-2-4" if pruning.two_of_four else "--prune"):
            report.zeros = _zero_weights(model, pruning)
    sizes = list(attention_sizes(model))
    report.query_heads = tuple(heads for heads, _ in sizes)
    report.kv_heads = tuple(groups for _, groups in sizes)
    report.parameters_after = _parameters(model)
    return report


@contextmanager
def _refusing(option: str) -> Iterator[None]:
    try:
        yield
    except UnmatchedError as error:
        raise UserError(f"{option} can't be applied to this model: {error}.") from error


def _prune_layers(
    model: ir.Model, count: int, layer_changes: Sequence[float] | None
) -> tuple[int, ...]:
    layers = len(find_layers(model))
    Pruning(layers=count).check_layers(layers)
    scores = rank_layers(model) if layer_changes is None else layer_changes
    kept = most_important(scores, layers - count)
    removed = tuple(index for index in range(layers) if index not in kept)
    remove_layers(model, removed)
    return removed


def _prune_channels(
    model: ir.Model, fraction: float, importance: Importance, cuts: Cuts
) -> dict[str, int]:
    if has_experts(model):
        raise UnmatchedError("its experts aren't linear layers of their own")
    attentions = sum(node.op_type == "Attention" for node in model.graph)
    readers = {linear.source: linear for linear in find_linears(model) if is_channel_reader(linear)}
    if len(readers) != attentions:
        raise UnmatchedError(
            f"{len(readers)} MLPs of linear layers alone were found in {attentions} layers"
        )
    left = {}
    for source, linear in readers.items():
        slicing = slice_channels(source, fraction, importance)
        remove(model, slicing, cuts)
        left[linear.name] = len(slicing.cuts[source].kept)
    return left


def _zero_weights(model: ir.Model, pruning: Pruning) -> int:
    linears = prunable_linears(model)
    if not linears:
        raise UnmatchedError("it has no linear layers but the one that makes the logits")
    if pruning.weights is not None:
        choose = partial(largest, fraction=pruning.weights)
        return sum(zero_weights(linear, choose) for linear in linears)
    return sum(
        zero_weights(linear, two_largest_of_four)
        for linear in linears
        if linear.array().shape[1] % 4 == 0
    )


def _parameters(model: ir.Model) -> int:
    return sum(
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.dtype is not None
        and value.dtype.is_floating_point()
    )
