"""Reshapes get constant shapes where the sizes are known to be equal, and nowhere else."""

import onnx_ir as ir
import pytest

from engines.passes.static_reshapes import fix_reshapes, reshape_sizes
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random


def split_heads(result: str = "[b, s, 4, 8]") -> ir.Model:
    """[b, s, 32] to heads, with a shape put together at run time."""
    model = graph(
        """
        agraph (float[b, s, 32] x) => (float y_sizes y)
        <int64[1] heads = {4}, int64[1] size = {8}> {
            attn__b = Shape <start: int = 0, end: int = 1> (x)
            attn__s = Shape <start: int = 1, end: int = 2> (x)
            attn__shape = Concat <axis: int = 0> (attn__b, attn__s, heads, size)
            attn__split = Reshape <allowzero: int = 1> (x, attn__shape)
            y = Identity (attn__split)
        }
        """.replace("float y_sizes y", f"float{result} y")
    )
    for value in (node.outputs[0] for node in model.graph):
        if value.name in ("y", "attn.split"):
            value.shape = model.graph.outputs[0].shape
    return model


def reshape(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "Reshape")


def test_shape_becomes_constant() -> None:
    after = assert_same_numbers(split_heads, fix_reshapes, {"x": random(2, 3, 32)})
    node = reshape(after)
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    assert node.inputs[1].const_value.numpy().tolist() == [0, 0, 4, 8]
    assert node.attributes.get_int("allowzero") == 0
    assert (node.name, node.outputs[0].name) == ("attn/Reshape_split", "attn.split")


def test_sizes_of_other_names_are_left_to_run_time() -> None:
    assert_untouched(lambda: split_heads("[c, t, 4, 8]"), fix_reshapes)
    model = split_heads("[c, t, 4, 8]")
    fix_reshapes(model)
    assert reshape(model).inputs[1] is not None
    assert not reshape(model).inputs[1].is_initializer()


def test_reshape_to_the_same_sizes_goes() -> None:
    def make() -> ir.Model:
        return graph(
            """
            agraph (float[b, s, 4] x) => (float[b, s, 4] y) {
                m__shape = Shape (x)
                m__same = Reshape (x, m__shape)
                y = Neg (m__same)
            }
            """
        )

    after = assert_same_numbers(make, fix_reshapes, {"x": random(2, 3, 4)})
    assert [node.op_type for node in after.graph] == ["Shape", "Neg"]


B, S = ir.SymbolicDim("b"), ir.SymbolicDim("s")
UNKNOWN = ir.SymbolicDim(None)


@pytest.mark.parametrize(
    ("source", "result", "sizes"),
    [
        ([B, S, 32], [B, S, 4, 8], [0, 0, 4, 8]),
        ([B, S, 4, 8], [B, S, 32], [0, 0, 32]),
        ([B, S, 32], [ir.SymbolicDim("b*s"), 32], [-1, 32]),
        ([ir.SymbolicDim("b*s"), 32], [B, S, 32], None),  # two sizes to infer
        ([B, S, 32], [S, B, 32], None),
        ([UNKNOWN, S, 32], [UNKNOWN, S, 32], [-1, 0, 0]),  # unknown sizes need not be equal
        ([UNKNOWN, UNKNOWN], [UNKNOWN, UNKNOWN], None),
        ([B, 0], [B, 0, 3], [0, 0, 3]),
    ],
)
def test_sizes(source: list[object], result: list[object], sizes: list[int] | None) -> None:
    assert reshape_sizes(source, result) == sizes
