"""A lowering that computes what the Q/DQ graph says passes the check; a wrong one is caught."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines import onnxruntime as onnxruntime_target
from engines.linears import find_linears
from engines.lowering_check import LIMIT, LoweringError, exact_logits, lowering_error
from engines.passes.block_quantized_weights import lower_block_quantized_weights
from engines.quantization.qdq import quantize_initializer
from engines.quantization.weights import WeightScheme, round_to_nearest
from exporter import export as export_module
from exporter.building import graph_info
from exporter.export import Request, plan_export
from serving.onnxruntime import OnnxRuntimeEngine
from tests.exports import once

Damage = Callable[[ir.Model], None]
Check = Callable[[WeightScheme, Damage], LoweringError]

SCHEMES = {
    "int8 rows": WeightScheme(8),
    "int8 groups": WeightScheme(8, 32),
    "int4": WeightScheme(4, 32),
    "int4 asymmetric": WeightScheme(4, 32, symmetric=False),
}
TOKENS = 48


@pytest.fixture(scope="module")
def check(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Return a function from a scheme and a damage to the lowered graph to what is found."""
    checkpoint, plan = plan_export(Request(model=str(trained_checkpoint), bundle=Path("nowhere")))

    def trace(path: Path) -> None:
        ir.save(export_module._trace(checkpoint, plan).model, path)

    traced = once(tmp_path_factory, "traced/trained.onnx", trace)

    def check(scheme: WeightScheme, damage: Damage) -> LoweringError:
        model = ir.load(traced)
        for linear in {linear.name: linear for linear in find_linears(model)}.values():
            weight = round_to_nearest(linear.array(), scheme)
            quantize_initializer(model, linear.weight, weight, transposed=linear.transposed)
        directory = tmp_path_factory.mktemp("lowering")
        graph = graph_info(model, plan)
        ir.save(model, directory / "standard.onnx")
        tokens = np.random.default_rng(5).integers(3, graph.vocab_size, TOKENS).tolist()
        exact = exact_logits(directory / "standard.onnx", tokens, capacity=TOKENS)
        lower_block_quantized_weights(model)
        onnxruntime_target.lower(model)
        damage(model)
        onnxruntime_target.write(model, directory)
        file = directory / onnxruntime_target.MODEL_FILE
        with OnnxRuntimeEngine(file, graph, slots=1, capacity=TOKENS) as engine:
            return lowering_error(engine, tokens, exact)

    return check


def kernels(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMulNBits"]


def nothing(model: ir.Model) -> None:
    assert kernels(model)


def change(index: int, how: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Change an input of every kernel: 1 is the integers, 2 the scales, 3 the zero points."""

    def damage(model: ir.Model) -> None:
        for value in {node.inputs[index] for node in kernels(model)}:
            assert value is not None
            assert value.const_value is not None
            array = how(value.const_value.numpy())
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)

    return damage


def transposed(blocks: np.ndarray) -> np.ndarray:
    return blocks.T.reshape(blocks.shape)


def wrong_middle(model: ir.Model) -> None:
    """Give a kernel a zero point of 0 where there is none, that is, the middle."""
    node = next(node for node in kernels(model) if "mlp.up_proj" in (node.name or ""))
    blocks = node.inputs[1].shape
    zeros = np.zeros((int(blocks[0]), int(blocks[1]) * node.attributes.get_int("bits") // 8))
    value = ir.Value(name="zeros", const_value=ir.tensor(zeros.astype(np.uint8), name="zeros"))
    model.graph.register_initializer(value)
    node.resize_inputs(4)
    node.replace_input_with(3, value)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_right_lowering_passes(check: Check, scheme: WeightScheme) -> None:
    error = check(scheme, nothing)
    assert error.breach() is None
    # Kernels with activations of 8 bits ran, or else the limit was compared with nothing.
    assert 1e-4 < error.prefill < LIMIT / 3
    assert 1e-4 < error.decode < LIMIT / 3


# All but "one kernel" are what a wrong lowering would do, to every kernel alike.
DAMAGE = {
    "scales transposed": ("int4", change(2, transposed)),
    "scales of the next row": ("int8 rows", change(2, lambda scales: np.roll(scales, 1, axis=0))),
    "scales of the next group": ("int4", change(2, lambda scales: np.roll(scales, 1, axis=1))),
    "a tenth off the scales": ("int8 groups", change(2, lambda scales: scales * 0.9)),
    "nibbles swapped": ("int4", change(1, lambda blocks: blocks >> 4 | blocks << 4)),
    "zero points off by one": ("int4 asymmetric", change(3, lambda zeros: zeros + 0x11)),
    "one kernel's zero point": ("int8 groups", wrong_middle),
    "NaN": ("int8 rows", change(2, lambda scales: scales * np.nan)),
}


@pytest.mark.parametrize(("scheme", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_wrong_lowering_is_caught(check: Check, scheme: str, damage: Damage) -> None:
    error = check(SCHEMES[scheme], damage)
    print("measured", error)
    said = error.breach()
    assert said is not None
    assert said.startswith("the lowered engine's logits are ")


def test_decoding_alone_is_enough_to_breach() -> None:
    assert LoweringError(LIMIT, LIMIT).breach() is None
    assert LoweringError(0.0, 1.1 * LIMIT).breach() is not None
    assert LoweringError(1.1 * LIMIT, 0.0).breach() is not None
    assert LoweringError(float("nan"), 0.0).breach() is not None
