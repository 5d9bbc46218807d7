"""LoRA adapters as inputs of the graph: each row of a step may have another one, or none.

Hu et al., LoRA, 2021: y = x W + (x A) B. The weights stay as they are, quantised or not; A and B of
all adapters are tables that a Gather takes each row's from. Projections that were merged have one
table: their A side by side and their B in blocks, so that a layer costs five small nodes more.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter
from engines.passes.sizes import known_type, static_size
from serving.bundle import LoraModule, LoraTable
from serving.contract import ADAPTER_IDS, INPUT_IDS, is_lora, lora_name

_TABLE = "lora"  # metadata of an input, which says what table it is
_SUM = "/lora/Add"  # the end of the name of the node that adds to a layer's result


def add_lora_inputs(model: ir.Model, modules: Collection[str]) -> None:
    """Let the linear layers of ``modules`` take adapters, in place.

    A module is named by its whole path or the end of it, such as ``q_proj``. ``model`` is a
    standard graph whose projections are merged. A layer that computes logits, or whose input isn't
    T [batch, sequence, in] or [tokens, in], is left as it is.
    """
    factors: dict[str, tuple[ir.Value, ir.Value]] = {}
    for linear in list(find_linears(model)):
        table = _table(linear, modules)
        if table is None or not _can_be_added(linear, model.graph.outputs[0]):
            continue
        if not factors:
            _add_input(model.graph, ADAPTER_IDS, ir.DataType.INT64, ["batch"])
        if table.name not in factors:  # else layers share a weight
            factors[table.name] = _add_factors(model.graph, table, known_type(linear.source))
        _add_product(model.graph, linear, table, *factors[table.name])


def lora_tables(model: ir.Model) -> tuple[LoraTable, ...]:
    """The tables that a graph has inputs for."""
    described = (value.metadata_props.get(_TABLE) for value in model.graph.inputs)
    return tuple(LoraTable.model_validate_json(text) for text in described if text)


def without_adapter(value: ir.Value) -> npt.NDArray[np.generic] | None:
    """What stands for "no adapter" as a graph's input, for one row; None for another input."""
    if value.name == ADAPTER_IDS:
        return np.zeros(1, np.int64)
    if not is_lora(value.name):
        return None
    assert value.shape is not None
    shape = [size if isinstance(size, int) else 1 for size in value.shape]
    return np.zeros(shape, known_type(value).numpy())


def products_beside(model: ir.Model, nodes: Collection[ir.Node]) -> list[ir.Node]:
    """The nodes that compute (x a) b where ``nodes`` give a layer's input or its result."""
    found: list[ir.Node] = []
    for add in model.graph:
        if not (add.name or "").endswith(_SUM):
            continue
        result, value = add.inputs
        assert result is not None
        linear = result.producer()
        assert linear is not None
        source = linear.inputs[0]
        assert source is not None
        if not {source.producer(), linear, add}.isdisjoint(nodes):
            while value is not source:
                assert value is not None
                node = value.producer()
                assert node is not None
                found.append(node)
                value = node.inputs[0]
    return found


def _table(linear: Linear, modules: Collection[str]) -> LoraTable | None:
    """What a layer's table holds, or None if none of its modules is among the chosen ones."""
    chosen, first = [], 0
    for name, outputs in linear.modules.items():
        if any(f".{name}".endswith(f".{wanted}") for wanted in modules):
            chosen.append(LoraModule(name=name, first_output=first, outputs=outputs))
        first += outputs
    if not chosen:
        return None
    return LoraTable(
        name=linear.name.removesuffix(".weight"),
        inputs=linear.inputs,
        outputs=linear.outputs,
        modules=tuple(chosen),
    )


def _can_be_added(linear: Linear, logits: ir.Value) -> bool:
    """Whether a layer is a hidden one whose rows can be told apart, of the type of the tables."""
    shape = linear.source.shape
    is_head = linear.outputs == static_size(logits, 2)
    is_known = shape is not None and len(shape) in (2, 3) and linear.source.dtype == logits.dtype
    return is_known and not is_head


def _add_factors(
    graph: ir.Graph, table: LoraTable, dtype: ir.DataType
) -> tuple[ir.Value, ir.Value]:
    rank = f"rank.{table.name}"
    a = _add_input(graph, lora_name(table.name, "a"), dtype, ["adapters", table.inputs, rank])
    b = _add_input(graph, lora_name(table.name, "b"), dtype, ["adapters", rank, table.outputs])
    b.metadata_props[_TABLE] = table.model_dump_json()
    return a, b


def _add_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _add_product(
    graph: ir.Graph, linear: Linear, table: LoraTable, a: ir.Value, b: ir.Value
) -> None:
    """Add (x a[id]) b[id] to what the layer gives, in front of its bias."""
    ids = next(value for value in graph.inputs if value.name == ADAPTER_IDS)
    insert = Inserter(graph, linear.matmul, f"{table.name}/lora")
    down = insert.value("Gather", [a, ids], axis=0)
    up = insert.value("Gather", [b, ids], axis=0)
    source, result = linear.source, linear.matmul.outputs[0]
    is_flat = source.shape is not None and len(source.shape) == 2
    if is_flat:  # tokens of all rows, which have to be told apart
        source = _by_row(insert, source, table.inputs)
    product = insert.value("MatMul", [insert.value("MatMul", [source, down]), up])
    if is_flat:
        product = insert.value("Reshape", [product, insert.integers([-1, table.outputs])])
    readers = [(use.node, use.idx) for use in result.uses()]
    add = ir.node("Add", [result, product], name=table.name + _SUM)
    graph.insert_after(linear.matmul, [add])
    total = add.outputs[0]
    total.name, total.shape, total.type = f"{table.name}/lora", result.shape, result.type
    for reader, position in readers:
        reader.replace_input_with(position, total)


def _by_row(insert: Inserter, source: ir.Value, width: int) -> ir.Value:
    """Activations [batch * sequence, in] as [batch, sequence, in]."""
    tokens = next(value for value in insert.graph.inputs if value.name == INPUT_IDS)
    rows = insert.value("Shape", [tokens])
    shape = insert.value("Concat", [rows, insert.integers([width])], axis=0)
    return insert.value("Reshape", [source, shape])
