"""Parsing a graph and mending its attention, on real networks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.causal_masks import mask_causal_attention
from engines.passes.fixed_capacity import fix_capacity
from engines.tensorrt import lowering
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend, parse
from serving.bundle import DType
from serving.errors import UserError
from serving.tensorrt.library import load_library
from serving.tensorrt.log import make_log
from tests.engines.tensorrt.decoder_graph import CAPPED, CAUSAL, WINDOW, Layer, decoder

pytest.importorskip("tensorrt_rtx")
CAPACITY = 16


def parsed(model: ir.Model) -> Network:
    library = load_library("tensorrt-rtx")
    return parse(model, "tensorrt-rtx", library, make_log(library))


def mended(*layers: Layer, dtype: DType = "float16") -> tuple[Network, ir.Model]:
    model = decoder(*layers, dtype=dtype)
    lower(model, CAPACITY)
    network = parsed(model)
    mend(network, model)
    return network, model


def without_masks(model: ir.Model, capacity: int = CAPACITY) -> Network:
    """The mended network of a graph whose causal attention is as the exporter wrote it."""
    with pytest.MonkeyPatch.context() as patch:
        passes = [each for each in lowering.PASSES if each is not mask_causal_attention]
        patch.setattr(lowering, "PASSES", passes)
        lower(model, capacity)
    network = parsed(model)
    mend(network, model)
    return network


def attention_of(network: Network, node: str) -> Any:
    return next(a for a in network.attentions().values() if a.name == node)


def test_the_parser_still_needs_mending() -> None:
    """If this fails, TensorRT's parser has improved: mend() and causal_masks.py may do less."""
    model = decoder(CAUSAL, dtype="float16")
    fix_capacity(model, CAPACITY)
    (attention,) = parsed(model).attentions().values()
    assert attention.causal_kind.name == "UPPER_LEFT"
    assert attention.key_value_lengths is None
    assert attention.get_input(1).name != "present.0.key"


def test_every_attention_reads_the_buffers_and_one_mask() -> None:
    network, _ = mended(CAUSAL, CAUSAL)
    attentions = [attention_of(network, f"layers.{i}/Attention") for i in range(2)]
    assert len({attention.mask.name for attention in attentions}) == 1
    for i, attention in enumerate(attentions):
        assert attention.mask.dtype.name == "BOOL"
        assert tuple(attention.mask.shape) == (-1, 1, -1, CAPACITY)
        assert attention.causal_kind.name == "NONE"
        assert attention.key_value_lengths is None
        assert [attention.get_input(k).name for k in (1, 2)] == [
            f"present.{i}.key",
            f"present.{i}.value",
        ]


def test_window_attention_keeps_its_mask() -> None:
    network, _ = mended(WINDOW)
    assert attention_of(network, "layers.0/Attention").mask.name == "window_mask"


@pytest.mark.parametrize(("dtype", "decomposable"), [("float32", True), ("float16", False)])
def test_what_has_no_kernel_may_be_decomposed(dtype: DType, decomposable: bool) -> None:
    network, _ = mended(CAUSAL, dtype=dtype)
    assert attention_of(network, "layers.0/Attention").decomposable is decomposable


def test_a_refused_node_is_named() -> None:
    model = decoder(CAUSAL, CAPPED)
    fix_capacity(model, CAPACITY)
    with pytest.raises(
        UserError, match=r"the Attention node 'layers\.1/Attention' \(.*softcap.*onnxruntime"
    ):
        parsed(model)


def test_a_library_that_does_not_start_asks_for_a_gpu() -> None:
    def no_builder(log: Any) -> None:
        log.errors.append("CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    log, library = SimpleNamespace(errors=[]), SimpleNamespace(Builder=no_builder)
    with pytest.raises(UserError, match=r"tensorrt doesn't start \(CUDA init.*NVIDIA GPU"):
        parse(decoder(CAUSAL), "tensorrt", library, log)


def test_weights_are_used_where_they_lie() -> None:
    model = decoder(CAUSAL)
    lower(model, CAPACITY)
    weight = np.ascontiguousarray(model.graph.initializers["head"].const_value.numpy())
    model.graph.initializers["head"].const_value = ir.tensor(weight, name="head")
    network = parsed(model)
    (constant,) = (layer for layer in network.layers("CONSTANT") if layer.name == "head")
    constant.__class__ = network.library.IConstantLayer
    assert constant.weights.ctypes.data == weight.ctypes.data
