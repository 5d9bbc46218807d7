"""Lower integer weights to ``MatMulNBits`` and ``GatherBlockQuantized`` of ONNX Runtime.

Its other kernels would turn the whole weight into floats at every step. ``MatMulNBits`` rounds the
activations to 8 bits, each block of a row with a scale of its own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.initializers import add_initializer
from engines.linears import find_linears
from engines.passes.insertion import Inserter, take_place
from engines.passes.sizes import static_size

_MICROSOFT = "com.microsoft"
_BITS = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}
_BLOCKS = (16, 32, 64, 128, 256)
# Scales of whole rows are repeated for blocks of these sizes: large ones are fastest, and those
# that divide the row need no padding.
_ROW_BLOCKS = (128, 64, 32)
# Multiply the integers with activations of 8 bits; the default, floats, is many times slower.
_ACCURACY_LEVEL = 4


def lower_block_quantized_weights(model: ir.Model) -> None:
    """Replace MatMul and Gather of dequantised weights [out, in], in place.

    Weights with a block size that the kernels don't have are left alone.
    """
    for linear in list(find_linears(model)):
        weight = _read(linear.dequantize) if linear.transposed else None
        if weight is not None:
            _replace_matmul(model.graph, linear.matmul, weight)
            model.graph.opset_imports[_MICROSOFT] = 1
    for node in list(model.graph):
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            table = node.inputs[0]
            weight = _read(table.producer() if table is not None else None)
            if weight is not None:
                _replace_gather(model.graph, node, weight)
                model.graph.opset_imports[_MICROSOFT] = 1


@dataclass(frozen=True)
class _Weight:
    """A DequantizeLinear node of integers [rows, columns], as the kernels cut it into blocks."""

    node: ir.Node
    rows: int
    columns: int
    block: int
    bits: int

    @property
    def blocks(self) -> int:
        return -(-self.columns // self.block)

    @property
    def middle(self) -> int:
        """What the kernels' unsigned integers have for zero."""
        return 1 << self.bits - 1

    def integers(self, graph: ir.Graph) -> ir.Value:
        """Unsigned integers [rows, blocks, block * bits / 8], the last block padded."""
        integers = _array(self.node.inputs[0]).astype(np.int16) + self.middle
        padding = ((0, 0), (0, self.blocks * self.block - self.columns))
        padded = np.pad(integers.astype(np.uint8), padding, constant_values=self.middle)
        blocks = padded.reshape(self.rows, self.blocks, self.block)
        return add_initializer(graph, f"{self.node.name}/blocks", _packed(blocks, self.bits))

    def scales(self, graph: ir.Graph, *, rank: int) -> ir.Value:
        """Scales [rows, blocks], or [rows, blocks, 1] with a ``rank`` of 3."""
        scales = self._by_block(_array(self.node.inputs[1]), rank)
        return add_initializer(graph, f"{self.node.name}/scales_{rank}", scales)

    def zero_points(self, graph: ir.Graph, *, rank: int) -> list[ir.Value]:
        """Zero points in the shape of the scales, packed; none where they are in the middle."""
        if len(self.node.inputs) < 3 or self.node.inputs[2] is None:
            return []
        zeros = _array(self.node.inputs[2]).astype(np.int16) + self.middle
        packed = _packed(self._by_block(zeros.astype(np.uint8), rank), self.bits)
        return [add_initializer(graph, f"{self.node.name}/zero_points_{rank}", packed)]

    def _by_block(self, values: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
        if values.ndim == 1:
            values = np.repeat(values[:, None], self.blocks, axis=1)
        return values.reshape(values.shape + (1,) * (rank - 2))


def _read(node: ir.Node | None) -> _Weight | None:
    """What the kernels need to know of a dequantised weight, or None where they can't run it."""
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, scales = node.inputs[:2]
    if integers is None or scales is None or scales.shape is None:
        return None
    if not integers.is_initializer() or integers.dtype not in _BITS:
        return None
    axis, rank = node.attributes.get_int("axis", 1), len(scales.shape)
    if (rank, axis) == (1, 0):
        columns = static_size(integers, 1)
        block = next((size for size in _ROW_BLOCKS if columns % size == 0), _ROW_BLOCKS[0])
    elif (rank, axis) == (2, 1):
        block = node.attributes.get_int("block_size", 0)
    else:
        return None
    if block not in _BLOCKS:
        return None
    return _Weight(
        node, static_size(integers, 0), static_size(integers, 1), block, _BITS[integers.dtype]
    )


def _replace_matmul(graph: ir.Graph, node: ir.Node, weight: _Weight) -> None:
    insert = Inserter(graph, node, node.name or "matmul")
    product = insert.value(
        "MatMulNBits",
        [
            node.inputs[0],
            weight.integers(graph),
            weight.scales(graph, rank=2),
            *weight.zero_points(graph, rank=2),
        ],
        domain=_MICROSOFT,
        K=weight.columns,
        N=weight.rows,
        bits=weight.bits,
        block_size=weight.block,
        accuracy_level=_ACCURACY_LEVEL,
    )
    take_place(graph, node, product)


def _replace_gather(graph: ir.Graph, node: ir.Node, weight: _Weight) -> None:
    """Gather the very blocks that MatMulNBits reads, so that a tied weight is stored once."""
    insert = Inserter(graph, node, node.name or "gather")
    blocks = insert.value(
        "GatherBlockQuantized",
        [
            weight.integers(graph),
            node.inputs[1],
            weight.scales(graph, rank=3),
            *weight.zero_points(graph, rank=3),
        ],
        domain=_MICROSOFT,
        gather_axis=0,
        quantize_axis=2,
        block_size=weight.block,
        bits=weight.bits,
    )
    shape = node.outputs[0].shape
    leading = [0] * (len(shape) - 1 if shape is not None else 2)
    row = insert.integers([*leading, weight.blocks * weight.block])
    rows = insert.value("Reshape", [blocks, row])
    if weight.blocks * weight.block != weight.columns:
        ends = [insert.integers([number]) for number in (0, weight.columns, -1)]
        rows = insert.value("Slice", [rows, *ends])
    take_place(graph, node, rows)


def _packed(array: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Numbers of 4 bits two to a byte along the last axis, the first in the lower half."""
    if bits == 8:
        return array
    if array.shape[-1] % 2:
        array = np.concatenate([array, np.zeros_like(array[..., :1])], axis=-1)
    return array[..., 0::2] | np.left_shift(array[..., 1::2], 4, dtype=np.uint8)


def _array(value: ir.Value | None) -> npt.NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
