"""Attention written out in a model's own code, brought back to one ``Attention`` node a layer.

Some model types multiply queries by keys themselves and never reach transformers' attention
interface. Their code is traced as it stands and recognised in the graph: a MatMul of softmax
weights with a value buffer, whose scores are a MatMul with that layer's key buffer, scaled and
biased.
"""

from dataclasses import dataclass

import onnx_ir as ir

from engines.passes.insertion import Inserter
from exporter.attention import UntraceableError

# What may stand between a buffer and the multiplication without changing the numbers.
_VIEWS = frozenset({"Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Cast", "Identity"})
_LOWEST = -65504.0  # of float16; what other types have is lower


@dataclass
class _Scores:
    """Attention scores as ``scale * (query @ key) + bias``."""

    query: ir.Value
    key: ir.Value
    scale: float
    bias: ir.Value | None


def fuse_own_attention(model: ir.Model) -> None:
    """Replace every written-out attention over a cache by an Attention node, in place.

    Raises UntraceableError where a value buffer is read in a way that isn't understood.
    """
    graph = model.graph
    updates = {node.outputs[0] for node in graph if node.op_type == "TensorScatter"}
    for node in list(graph):
        if node.op_type == "MatMul" and (value := _buffer(node.inputs[1], updates)) is not None:
            softmax = _behind_views(node.inputs[0])
            if softmax is None or softmax.op_type != "Softmax":
                continue
            _replace(graph, node, softmax, value, updates)
    graph.sort()


def _buffer(value: ir.Value | None, updates: set[ir.Value]) -> ir.Value | None:
    """The cache buffer that ``value`` is a view of."""
    while value is not None and value not in updates:
        producer = value.producer()
        if producer is None or producer.op_type not in _VIEWS:
            return None
        value = producer.inputs[0]
    return value


def _behind_views(value: ir.Value | None) -> ir.Node | None:
    """The node whose result ``value`` is, apart from its shape and type."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _VIEWS:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _replace(
    graph: ir.Graph, node: ir.Node, softmax: ir.Node, value: ir.Value, updates: set[ir.Value]
) -> None:
    insert = Inserter(graph, node, (node.name or "attention").rpartition("/")[0])
    assert softmax.inputs[0] is not None
    scores = _read_scores(insert, softmax.inputs[0], updates)
    assert value.shape is not None
    query = scores.query
    heads = _heads(query, value)
    dtype = value.dtype
    assert dtype is not None

    def as_input(tensor: ir.Value) -> ir.Value:
        return _four_axes(insert, _cast(insert, tensor, dtype), heads)

    attention = insert.node(
        "Attention",
        [
            as_input(query),
            scores.key,
            value,
            as_input(scores.bias) if scores.bias is not None else None,
        ],
        scale=scores.scale,
    )
    attention.name = f"{insert.prefix}/Attention"
    output = attention.outputs[0]
    output.shape = ir.Shape([None, heads, None, value.shape[3]])
    output.type = value.type
    result = node.outputs[0]
    if result.shape is not None and len(result.shape) == 3:
        shape = insert.value("Shape", [output], start=2, end=4)
        joined = insert.value("Concat", [insert.integers([-1]), shape], axis=0)
        output = insert.value("Reshape", [output, joined])
    result.replace_all_uses_with(output)


def _read_scores(insert: Inserter, scores: ir.Value, updates: set[ir.Value]) -> _Scores:
    """Walk back from the softmax to the multiplication by keys, collecting scale and bias."""
    node = scores.producer()
    if node is None:
        raise UntraceableError("attention code of its own that isn't understood")
    first, second = (*node.inputs, None)[:2]
    assert first is not None
    if node.op_type == "MatMul" and (key := _buffer(second, updates)) is not None:
        return _Scores(first, key, 1.0, None)
    if node.op_type in _VIEWS:
        return _read_scores(insert, first, updates)
    if node.op_type == "Max" and (lowest := _number(second)) is not None and lowest <= _LOWEST:
        return _read_scores(insert, first, updates)  # keeps hidden scores finite, and hidden
    if node.op_type in ("Mul", "Div"):
        inner, factor = first, _number(second)
        if factor is None and node.op_type == "Mul" and second is not None:
            inner, factor = second, _number(first)
        if factor is not None:
            factor = factor if node.op_type == "Mul" else 1 / factor
            return _scaled(insert, _read_scores(insert, inner, updates), factor)
    if node.op_type == "Add" and second is not None:
        inner, bias = (first, second) if _has_scores(first, updates) else (second, first)
        return _biased(insert, _read_scores(insert, inner, updates), bias)
    if node.op_type == "Where":
        condition, hidden, shown = node.inputs
        assert condition is not None
        assert shown is not None
        zero = insert.value("CastLike", [insert.integers(0), shown])
        bias = insert.value("Where", [condition, hidden, zero])
        bias.shape, bias.type = condition.shape, shown.type
        return _biased(insert, _read_scores(insert, shown, updates), bias)
    raise UntraceableError(f"attention code of its own with {node.op_type} on its scores")


def _has_scores(value: ir.Value, updates: set[ir.Value]) -> bool:
    """Whether ``value`` comes from a multiplication by a key buffer, a few steps back."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "MatMul":
        return _buffer(node.inputs[1], updates) is not None
    if node.op_type in _VIEWS | {"Mul", "Div", "Add", "Where", "Max"}:
        return any(_has_scores(source, updates) for source in node.inputs if source is not None)
    return False


def _number(value: ir.Value | None) -> float | None:
    """The number that ``value`` is, if it is a constant with one element."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def _scaled(insert: Inserter, scores: _Scores, factor: float) -> _Scores:
    bias = scores.bias
    if bias is not None and factor != 1.0:
        number = insert.value("CastLike", [insert.number(factor), bias])
        scaled = insert.value("Mul", [bias, number])
        scaled.shape, scaled.type = bias.shape, bias.type
        bias = scaled
    return _Scores(scores.query, scores.key, scores.scale * factor, bias)


def _biased(insert: Inserter, scores: _Scores, bias: ir.Value) -> _Scores:
    if scores.bias is None:
        return _Scores(scores.query, scores.key, scores.scale, bias)
    ranks = {len(part.shape) if part.shape is not None else 0 for part in (scores.bias, bias)}
    first, second = scores.bias, bias
    if ranks == {3, 4}:
        heads = _heads(scores.query, scores.key)
        first, second = (_four_axes(insert, part, heads) for part in (first, second))
    total = insert.value("Add", [first, second])
    total.shape = ir.Shape([None] * max(len(part.shape or ()) for part in (first, second)))
    total.type = bias.type
    return _Scores(scores.query, scores.key, scores.scale, total)


def _heads(query: ir.Value, buffer: ir.Value) -> int:
    """Number of query heads: axis 1 of a query with four axes, else that of the buffer."""
    for value in (query, buffer):
        if value.shape is not None and len(value.shape) == 4 and isinstance(value.shape[1], int):
            return value.shape[1]
    raise UntraceableError("attention code of its own whose number of heads isn't fixed")


def _four_axes(insert: Inserter, value: ir.Value, heads: int) -> ir.Value:
    """[batch * heads, rows, columns] to [batch, heads, rows, columns]; others as they are."""
    if value.shape is None or len(value.shape) != 3:
        return value
    rest = insert.value("Shape", [value], start=1, end=3)
    shape = insert.value("Concat", [insert.integers([-1, heads]), rest], axis=0)
    split = insert.value("Reshape", [value, shape])
    split.shape = ir.Shape([None, heads, value.shape[1], value.shape[2]])
    split.type = value.type
    return split


def _cast(insert: Inserter, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    if value.dtype == dtype:
        return value
    cast = insert.value("Cast", [value], to=dtype)
    cast.shape, cast.dtype = value.shape, dtype
    return cast
