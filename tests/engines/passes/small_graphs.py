"""Small graphs, written in ONNX's own text form, to show what a pass makes of them."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.engines.passes.graphs import Arrays, assert_close, operators, run

Pass = Callable[[ir.Model], None]


def graph(text: str, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """The model of ``agraph (inputs) => (outputs) { nodes }`` with these initialisers.

    In ``text`` a double underscore stands for a dot, which the format doesn't take. A node that
    computes ``module.value`` is named ``module/Operator_value``.
    """
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": 24]> {text}')
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("__", ".") for name in names]
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in (weights or {}).items()
    )
    for node in model.graph.node:
        module, _, value = node.output[0].rpartition(".")
        node.name = f"{module}/{node.op_type}_{value}".lstrip("/")
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same_numbers(make: Callable[[], ir.Model], change: Pass, inputs: Arrays) -> ir.Model:
    """Check the changed graph, run by ONNX Runtime, against the reference evaluator's original."""
    before, after = make(), make()
    change(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    evaluator = ReferenceEvaluator(ir.to_proto(before))
    names = [value.name or "" for value in before.graph.outputs]
    expected = {
        name: np.asarray(array)
        for name, array in zip(names, evaluator.run(None, inputs), strict=True)
    }
    assert_close(run(after, inputs), expected)
    return after


def assert_untouched(make: Callable[[], ir.Model], change: Pass) -> None:
    after = make()
    change(after)
    assert operators(after) == operators(make())
