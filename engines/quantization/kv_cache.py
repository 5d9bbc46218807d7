"""An INT8 KV cache in standard Q/DQ form: one static scale for each KV head and channel.

New keys (after rotary) and values are divided by their scales, rounded by QuantizeLinear and
scattered into an int8 buffer; what reads the buffer gets DequantizeLinear and a product. Keys have
a few channels of large magnitude, which would take the range of all others (KIVI, Liu et al. 2024),
and these differ between heads. QuantizeLinear takes scales along one axis only, so its own is 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.calibration import observe
from engines.initializers import add_initializer
from engines.passes.insertion import Inserter
from engines.quantization.weights import Floats
from serving.contract import PARTS, past_name
from serving.engine import IntArray

_HIGHEST = 127


def largest_entries(
    model: ir.Model, windows: Sequence[IntArray], workspace: Path
) -> dict[str, Floats]:
    """Largest magnitude of each head and channel [kv_heads, head_dim], by the past's name.

    ``model`` has float buffers and stays as it is; ``windows`` and ``workspace`` as ``observe``.
    """
    written: dict[str, ir.Value] = {}
    for past, update in _updates(model).items():
        value = update.inputs[1]
        assert value is not None
        written[past] = value
    largest: dict[str, Floats] = {}
    for arrays in observe(model, list(written.values()), windows, workspace):
        for past, value in written.items():
            seen = np.abs(arrays[value.name or ""]).max(axis=(0, 2))
            largest[past] = np.maximum(largest.get(past, seen), seen)
    return largest


def quantize_kv_cache(model: ir.Model, largest: Mapping[str, Floats]) -> None:
    """Make every KV buffer int8, in place.

    ``largest`` is what ``largest_entries`` found; what exceeds it later saturates.
    """
    graph = model.graph
    for past, update in _updates(model).items():
        buffer, written, present = update.inputs[0], update.inputs[1], update.outputs[0]
        assert buffer is not None
        assert written is not None
        floating = present.type
        assert floating is not None
        scales = cache_scales(largest[past]).astype(floating.dtype.numpy())
        scale = add_initializer(graph, f"{past}.scales", scales)
        one = add_initializer(graph, "kv_cache.one", np.ones((), scales.dtype))
        zero = add_initializer(graph, "kv_cache.zero", np.zeros((), np.int8))

        before = Inserter(graph, update, f"{past}/quantized")
        divided = before.value("Div", [written, scale])
        divided.shape, divided.type = written.shape, floating
        integers = before.value("QuantizeLinear", [divided, one, zero])
        integers.shape, integers.type = written.shape, ir.TensorType(ir.DataType.INT8)
        update.replace_input_with(1, integers)

        readers = list(present.uses())
        buffer.type, present.type = integers.type, integers.type
        after = Inserter(graph, update, f"{past}/dequantized")
        floats = after.value("DequantizeLinear", [present, one, zero])
        floats.shape, floats.type = present.shape, floating
        entries = after.value("Mul", [floats, scale])
        entries.shape, entries.type = present.shape, floating
        for use in readers:
            use.node.replace_input_with(use.idx, entries)
    graph.sort()


def cache_scales(largest: Floats) -> Floats:
    """Scales [1, kv_heads, 1, head_dim] that map the largest magnitudes to 127."""
    scales = np.asarray(largest, dtype=np.float32)[None, :, None, :] / _HIGHEST
    return np.where(scales > 0, scales, 1).astype(np.float32)


def _updates(model: ir.Model) -> dict[str, ir.Node]:
    """Each cache update by the name of the past that it writes to."""
    graph = model.graph
    pasts = {past_name(layer, part) for layer in range(len(graph.inputs)) for part in PARTS}
    return {
        name: node
        for node in graph
        if node.op_type == "TensorScatter"
        and node.inputs[0] is not None
        and (name := node.inputs[0].name) in pasts
        and name is not None
    }
