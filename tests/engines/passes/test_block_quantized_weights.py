"""Integer weights run on ONNX Runtime's block-quantised kernels and keep their numbers."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.block_quantized_weights import lower_block_quantized_weights
from engines.quantization.qdq import quantize_initializer
from engines.quantization.weights import QuantizedWeight, WeightScheme, round_to_nearest
from tests.engines.passes.graphs import operators, run

VOCAB, WIDTH = 24, 192
SCHEMES = {
    "int8, rows": WeightScheme(8),
    "int8, blocks": WeightScheme(8, 32),
    "int8, asymmetric rows": WeightScheme(8, None, symmetric=False),
    "int4, rows": WeightScheme(4),
    "int4, blocks": WeightScheme(4, 64),
    "int4, asymmetric blocks": WeightScheme(4, 64, symmetric=False),
}


def tied_graph(scheme: WeightScheme, width: int) -> tuple[ir.Model, QuantizedWeight]:
    """logits = Gather(W, ids) Wᵀ."""
    random = np.random.default_rng(3)
    table = random.standard_normal((VOCAB, width)).astype(np.float32)
    tensor = ir.tensor(table, name="weight")
    weight = ir.Value(
        name="weight",
        shape=ir.Shape(table.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    ids = ir.Value(name="ids", shape=ir.Shape(["b", "s"]), type=ir.TensorType(ir.DataType.INT64))
    gather = ir.node("Gather", [weight, ids], {"axis": 0})
    gather.outputs[0].name, gather.outputs[0].shape = "rows", ir.Shape(["b", "s", width])
    gather.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]})
    product = ir.node("MatMul", [gather.outputs[0], turned.outputs[0]])
    product.outputs[0].name = "logits"
    product.outputs[0].shape = ir.Shape(["b", "s", VOCAB])
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [ids],
        [gather.outputs[0], product.outputs[0]],
        nodes=[gather, turned, product],
        initializers=[weight],
        opset_imports={"": 24},
        name="tied",
    )
    model = ir.Model(graph, ir_version=10)
    quantized = round_to_nearest(table, scheme)
    quantize_initializer(model, weight, quantized, transposed=True)
    return model, quantized


@pytest.mark.parametrize("width", [192, 320])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_tied_weight_keeps_its_numbers(scheme: WeightScheme, width: int) -> None:
    model, quantized = tied_graph(scheme, width)
    lower_block_quantized_weights(model)
    assert operators(model)["GatherBlockQuantized"] == operators(model)["MatMulNBits"] == 1
    blocks = [name for name in model.graph.initializers if name.endswith("/blocks")]
    assert len(blocks) == 1, "a tied weight is stored once"

    ids = np.array([[0, 7, VOCAB - 1], [3, 3, 1]])
    weight = quantized.dequantized()
    rows = weight[ids]
    got = run(model, {"ids": ids})
    np.testing.assert_allclose(got["rows"], rows, atol=1e-5)
    # The kernel rounds each block of 8-bit activations: by half a step at most, a sum over all.
    size = scheme.group_size or 128
    blocks_of_rows = np.pad(rows, ((0, 0), (0, 0), (0, -width % size))).reshape(2, 3, -1, size)
    half_steps = np.repeat(np.abs(blocks_of_rows).max(axis=-1) / 254, size, axis=-1)[..., :width]
    allowed = half_steps @ np.abs(weight).T + 1e-4
    assert (np.abs(got["logits"] - rows @ weight.T) <= allowed).all()


def test_unknown_block_size_is_left_alone() -> None:
    model, quantized = tied_graph(WeightScheme(8, 24), WIDTH)
    lower_block_quantized_weights(model)
    assert operators(model)["MatMulNBits"] == operators(model)["GatherBlockQuantized"] == 0
    ids = np.array([[5]])
    weight = quantized.dequantized()
    np.testing.assert_allclose(
        run(model, {"ids": ids})["logits"], weight[ids] @ weight.T, atol=1e-3
    )
