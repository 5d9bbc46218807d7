"""A rotation, however it is written, becomes one node; all share angles that are computed once."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from engines.passes.rotary_embedding import fuse_rotary_embedding
from tests.engines.passes.graphs import operators
from tests.engines.passes.small_graphs import assert_same_numbers, assert_untouched, graph, random

HEADS, DIM = 2, 8
INPUTS = {"q": random(2, HEADS, 3, DIM), "k": random(2, 1, 3, DIM, seed=1), "f": random(2, 3, 4)}
PARTIAL = {"q": random(2, HEADS, 3, 12), "k": random(2, 1, 3, 12, seed=1), "f": random(2, 3, 4)}

JOINED = "rope__angles = Concat <axis: int = -1> (f, f)"
REPEATED = """
    rope__column = Unsqueeze (f, three)
    rope__pairs = Expand (rope__column, twice)
    rope__sizes = Shape <start: int = 0, end: int = 2> (f)
    rope__full_sizes = Concat <axis: int = 0> (rope__sizes, eight)
    rope__angles = Reshape (rope__pairs, rope__full_sizes)
"""


def angles(doubling: str, axis: str = "one") -> str:
    """Cosine and sine [b, 1, s, 8], scaled as YaRN does."""
    return f"""
    {doubling}
    rope__cosine = Cos (rope__angles)
    rope__scaled_cosine = Mul (rope__cosine, factor)
    rope__sine = Sin (rope__angles)
    rope__scaled_sine = Mul (rope__sine, factor)
    cos = Unsqueeze (rope__scaled_cosine, {axis})
    sin = Unsqueeze (rope__scaled_sine, {axis})
    """


def halves(x: str, result: str, middle: str = "four") -> str:
    """As Llama turns."""
    return f"""
    {result}__direct = Mul ({x}, cos)
    {result}__first = Slice ({x}, zero, {middle}, three, one)
    {result}__second = Slice ({x}, {middle}, end, three, one)
    {result}__minus = Neg ({result}__second)
    {result}__turned = Concat <axis: int = -1> ({result}__minus, {result}__first)
    {result}__crossed = Mul ({result}__turned, sin)
    {result} = Add ({result}__direct, {result}__crossed)
    """


def neighbours(x: str, result: str) -> str:
    """As Cohere turns."""
    return f"""
    {result}__direct = Mul ({x}, cos)
    {result}__even = Slice ({x}, zero, end, three, two)
    {result}__odd = Slice ({x}, one, end, three, two)
    {result}__minus = Neg ({result}__odd)
    {result}__left = Unsqueeze ({result}__minus, last)
    {result}__right = Unsqueeze ({result}__even, last)
    {result}__pairs = Concat <axis: int = -1> ({result}__left, {result}__right)
    {result}__sizes = Shape ({x})
    {result}__turned = Reshape ({result}__pairs, {result}__sizes)
    {result}__crossed = Mul ({result}__turned, sin)
    {result} = Add ({result}__direct, {result}__crossed)
    """


def split_halves(x: str, result: str) -> str:
    """As GPT-OSS turns, with angles given once."""
    return f"""
    {result}__x1, {result}__x2 = Split <axis: int = -1, num_outputs: int = 2> ({x})
    {result}__a = Mul ({result}__x1, cos)
    {result}__b = Mul ({result}__x2, sin)
    {result}__left = Sub ({result}__a, {result}__b)
    {result}__c = Mul ({result}__x2, cos)
    {result}__d = Mul ({result}__x1, sin)
    {result}__right = Add ({result}__c, {result}__d)
    {result} = Concat <axis: int = -1> ({result}__left, {result}__right)
    """


def first_channels(x: str, result: str) -> str:
    """As GPT-NeoX turns: 8 of 12 channels."""
    return f"""
    {result}__part = Slice ({x}, zero, eight, three, one)
    {result}__rest = Slice ({x}, eight, end, three, one)
    {halves(f"{result}__part", f"{result}__done")}
    {result} = Concat <axis: int = -1> ({result}__done, {result}__rest)
    """


def rotations(
    doubling: str, turn: Callable[[str, str], str], *, dim: int = DIM, batch: str = "b"
) -> Callable[[], ir.Model]:
    """Queries and keys, turned by the same angles."""
    text = f"""
    agraph (float[b, {HEADS}, s, {dim}] q, float[b, 1, s, {dim}] k, float[{batch}, s, 4] f)
        => (float[b, {HEADS}, s, {dim}] query, float[b, 1, s, {dim}] key)
    <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
     int64[1] four = {{4}}, int64[1] eight = {{8}}, int64[1] end = {{9223372036854775807}},
     int64[1] last = {{-1}}, int64[4] twice = {{1, 1, 1, 2}}, float factor = {{1.25}}> {{
        {angles(doubling)}
        {turn("q", "query")}
        {turn("k", "key")}
    }}
    """

    def make() -> ir.Model:
        model = graph(text)
        # What shape inference doesn't find, the tracer knows.
        known = {"rope.angles": [batch, "s", 8], "query.turned": ["b", HEADS, "s", 8]}
        known["key.turned"] = ["b", 1, "s", 8]
        for value in (node.outputs[0] for node in model.graph):
            name = "rope.angles" if (value.name or "").startswith("rope.") else value.name
            if value.shape is None and name in known:
                value.shape, value.type = ir.Shape(known[name]), ir.TensorType(ir.DataType.FLOAT)
        return model

    return make


ONCE = "rope__angles = Identity (f)"
FORMS = {
    "halves": (JOINED, halves, DIM),
    "neighbours": (REPEATED, neighbours, DIM),
    "split halves": (ONCE, split_halves, DIM),
    "first channels": (JOINED, first_channels, 12),
}


@pytest.mark.parametrize("form", FORMS)
def test_becomes_one_node(form: str) -> None:
    doubling, turn, dim = FORMS[form]
    after = assert_same_numbers(
        rotations(doubling, turn, dim=dim),
        fuse_and_clean,
        PARTIAL if dim == 12 else INPUTS,
    )
    counts = operators(after)
    assert counts["RotaryEmbedding"] == 2
    assert counts["Cos"] == counts["Sin"] == 1
    assert set(counts) <= {"RotaryEmbedding", "Cos", "Sin", "Mul", "Identity"}
    for node in after.graph:
        if node.op_type == "RotaryEmbedding":
            assert node.attributes.get_int("interleaved") == int(form == "neighbours")
            assert node.inputs[1] is not None
            assert node.inputs[1].shape == ir.Shape(["b", "s", 4])


def fuse_and_clean(model: ir.Model) -> None:
    fuse_rotary_embedding(model)
    common.RemoveUnusedNodesPass()(model)


@pytest.mark.parametrize(
    "make",
    [
        rotations(JOINED, lambda x, y: halves(x, y, middle="two")),
        rotations(JOINED, neighbours),  # angles of halves, channels of neighbours
        rotations(REPEATED, halves),
        rotations(JOINED, halves, batch="1"),  # one row of angles for all
    ],
    ids=["unequal parts", "halves for neighbours", "neighbours for halves", "one row"],
)
def test_other_formulas_are_left_alone(make: Callable[[], ir.Model]) -> None:
    assert_untouched(make, fuse_and_clean)
