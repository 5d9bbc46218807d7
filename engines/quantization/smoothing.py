"""Moving a scale of each input channel from the activations into the weights.

x W = (x / s) (s W): the numbers stay, but what is hard to quantise becomes easier (SmoothQuant,
Xiao et al. 2022; AWQ, Lin et al. 2023). The division goes into the constants of what produces the
activations: a norm's scale, or the rows of the linear layer in front.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.linears import Linear, as_linear
from engines.passes.insertion import Inserter

Floats = npt.NDArray[np.float32]

_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class _Channels:
    """Channels ``start`` to ``stop`` of the ``width`` that a value has on its last axis."""

    start: int
    stop: int
    width: int


@dataclass(frozen=True)
class _Constant:
    """A constant input of a node that scales with some channels along one of its axes."""

    node: ir.Node
    index: int
    axis: int
    channels: _Channels

    @property
    def value(self) -> ir.Value:
        value = self.node.inputs[self.index]
        assert value is not None
        return value


def can_fold(linears: Sequence[Linear]) -> bool:
    """Whether what produces the activations of these layers can take a scale."""
    return _absorbing_constants(linears) is not None


def has_own_weight(linear: Linear) -> bool:
    """Whether nothing but this layer reads its weight, so that it may be rescaled."""
    value = linear.matmul.inputs[1]
    while value is not None and len(value.uses()) == 1:
        producer = value.producer()
        if producer is None:
            return True
        value = producer.inputs[0]
    return False


def fold_input_scale(model: ir.Model, linears: Sequence[Linear], scale: Floats) -> bool:
    """Divide the activations of ``linears`` by ``scale`` [in] and multiply the weights, in place.

    ``linears`` are float layers with one source and weights of their own. If there are other
    readers of the source or its producer can't take the scale, a Mul is inserted in front of these
    layers; returns whether that was unnecessary. Raises ValueError where a weight is shared.
    """
    for linear in linears:
        if not has_own_weight(linear):
            raise ValueError(f"{linear.name} is shared: it can't be scaled for one layer")
        (reader,) = linear.weight.uses()
        axis = 1 if linear.transposed else 0
        columns = _Constant(reader.node, reader.idx, axis, _all_channels(linears))
        _multiply(model.graph, columns, scale)
    constants = _absorbing_constants(linears)
    for constant in constants or ():
        _multiply(model.graph, constant, np.reciprocal(scale))
    if constants is None:
        _insert_division(model.graph, linears, scale)
    return constants is not None


def _insert_division(graph: ir.Graph, linears: Sequence[Linear], scale: Floats) -> None:
    source, first = linears[0].source, linears[0].matmul
    assert source.dtype is not None
    factors = add_initializer(
        graph, f"{linears[0].name}.input_scale", (1 / scale).astype(source.dtype.numpy())
    )
    scaled = Inserter(graph, first, f"{first.name}/smoothed").value("Mul", [source, factors])
    scaled.shape, scaled.type = source.shape, source.type
    for linear in linears:
        linear.matmul.replace_input_with(0, scaled)


def _all_channels(linears: Sequence[Linear]) -> _Channels:
    return _Channels(0, linears[0].inputs, linears[0].inputs)


def _absorbing_constants(linears: Sequence[Linear]) -> list[_Constant] | None:
    """The constants to multiply in order to scale the source of ``linears``, and only theirs."""
    readers = {linear.matmul for linear in linears}
    return _constants_behind(linears[0].source, readers, _all_channels(linears))


def _constants_behind(
    value: ir.Value | None, readers: set[ir.Node], channels: _Channels
) -> list[_Constant] | None:
    """The constants that scale these channels of a value, if nobody but ``readers`` reads it."""
    node = value.producer() if value is not None else None
    if value is None or node is None or value.is_graph_output():
        return None
    if any(use.node not in readers for use in value.uses()):
        return None
    if node.op_type in _NORMALIZATIONS:
        constants = [_Constant(node, index, -1, channels) for index in range(1, len(node.inputs))]
        return constants if all(_is_vector(c.value, channels) for c in constants) else None
    if node.op_type in ("Mul", "Add"):
        return _constants_of_elementwise(node, channels)
    if node.op_type == "Split":
        whole = _before_split(node, value, channels)
        return _constants_behind(node.inputs[0], {node}, whole) if whole is not None else None
    if _keeps_channels(node, channels):
        return _constants_behind(node.inputs[0], {node}, channels)
    return _rows_of(node, channels) if node.op_type == "MatMul" else None


def _constants_of_elementwise(node: ir.Node, channels: _Channels) -> list[_Constant] | None:
    """One factor of a product is enough; a sum needs both terms."""
    sides: list[list[_Constant] | None] = []
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_initializer():
            is_vector = _is_vector(value, channels)
            sides.append([_Constant(node, index, -1, channels)] if is_vector else None)
        else:
            sides.append(_constants_behind(value, {node}, channels))
    if node.op_type == "Mul":
        return min((side for side in sides if side is not None), key=len, default=None)
    left, right = sides
    return left + right if left is not None and right is not None else None


def _before_split(node: ir.Node, part: ir.Value, channels: _Channels) -> _Channels | None:
    """Where the channels of a part are in what is split along the last axis."""
    whole = node.inputs[0]
    widths = [_width(value) for value in (whole, *node.outputs)]
    if None in widths or node.attributes.get_int("axis", 0) not in (-1, len(part.shape or ()) - 1):
        return None
    width, *parts = (width for width in widths if width is not None)
    offset = sum(parts[: part.index() or 0])
    return _Channels(offset + channels.start, offset + channels.stop, width)


def _keeps_channels(node: ir.Node, channels: _Channels) -> bool:
    """Whether the last axis of a node's output is that of its first input, in another arrangement.

    GatherElements selects the positions that get logits.
    """
    if node.op_type not in ("Reshape", "Cast", "Identity", "GatherElements"):
        return False
    if any(_width(value) != channels.width for value in (node.inputs[0], node.outputs[0])):
        return False
    return node.op_type != "GatherElements" or node.attributes.get_int("axis", 0) == 1


def _rows_of(matmul: ir.Node, channels: _Channels) -> list[_Constant] | None:
    """The rows of a layer's weight, or the scales of its rows where it is quantised already."""
    linear = as_linear(matmul)
    if linear is None or not has_own_weight(linear):
        return None
    if linear.dequantize is not None:
        return [_Constant(linear.dequantize, 1, 0, channels)]
    (reader,) = linear.weight.uses()
    return [_Constant(reader.node, reader.idx, 0 if linear.transposed else 1, channels)]


def _is_vector(value: ir.Value, channels: _Channels) -> bool:
    return value.is_initializer() and value.shape is not None and value.shape == (channels.width,)


def _width(value: ir.Value | None) -> int | None:
    """The static size of a value's last axis."""
    size = value.shape[-1] if value is not None and value.shape else None
    return size if isinstance(size, int) else None


def _multiply(graph: ir.Graph, constant: _Constant, factors: Floats) -> None:
    """Give a node a constant of its own whose channels are multiplied with ``factors``."""
    old, channels = constant.value, constant.channels
    assert old.const_value is not None
    array = old.const_value.numpy()
    shape = [1] * array.ndim
    shape[constant.axis] = channels.width
    all_factors = np.ones(channels.width, np.float32)
    all_factors[channels.start : channels.stop] = factors
    scaled = (array * all_factors.reshape(shape)).astype(array.dtype)
    if len(old.uses()) == 1:
        assert old.name is not None
        old.const_value = ir.tensor(scaled, name=old.name)
    else:
        name = f"{constant.node.name}.scaled.{constant.index}"
        constant.node.replace_input_with(constant.index, add_initializer(graph, name, scaled))
