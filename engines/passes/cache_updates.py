"""How attention reads the KV buffers: the update behind its keys or values, int8 or not."""

from dataclasses import dataclass

import onnx_ir as ir

from serving.contract import PAST_LENGTHS


@dataclass(frozen=True)
class CacheUpdate:
    """A TensorScatter at ``past_lengths`` and the nodes that quantise what goes in and out."""

    scatter: ir.Node
    tokens: ir.Value
    """The new keys or values, floating point [batch, kv_heads, sequence, head_dim]."""
    scale: ir.Value | None
    """Scales [1, kv_heads, 1, head_dim] where the buffer is int8."""
    chain: tuple[ir.Node, ...]
    """The nodes from the scatter to what attention reads, in order."""

    @property
    def buffer(self) -> ir.Value:
        """The past."""
        value = self.scatter.inputs[0]
        assert value is not None
        return value

    @property
    def present(self) -> ir.Value:
        """The updated buffer."""
        return self.scatter.outputs[0]

    def is_read_by(self, node: ir.Node) -> bool:
        """Whether ``node`` and nothing else reads this cache."""
        readers = (*self.chain[1:], node)
        return all(
            {use.node for use in link.outputs[0].uses()} == {reader}
            for link, reader in zip(self.chain, readers, strict=True)
        )


def find_cache_update(value: ir.Value | None) -> CacheUpdate | None:
    """The update that ``value``, an Attention node's keys or values, comes from."""
    node = _producer(value)
    if node is None:
        return None
    if node.op_type == "TensorScatter":
        return _update(node, node.inputs[1], None, (node,))
    # As engines/quantization/kv_cache.py writes it.
    dequantize = _producer(node.inputs[0]) if node.op_type == "Mul" else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    scatter = _producer(dequantize.inputs[0])
    quantize = _producer(scatter.inputs[1]) if scatter is not None else None
    divide = _producer(quantize.inputs[0]) if quantize is not None else None
    if scatter is None or divide is None or divide.op_type != "Div":
        return None
    if divide.inputs[1] is not node.inputs[1]:
        return None
    return _update(scatter, divide.inputs[0], divide.inputs[1], (scatter, dequantize, node))


def _update(
    scatter: ir.Node, tokens: ir.Value | None, scale: ir.Value | None, chain: tuple[ir.Node, ...]
) -> CacheUpdate | None:
    written_at = scatter.inputs[2] if scatter.op_type == "TensorScatter" else None
    if tokens is None or written_at is None or written_at.name != PAST_LENGTHS:
        return None
    return CacheUpdate(scatter, tokens, scale, chain)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None
