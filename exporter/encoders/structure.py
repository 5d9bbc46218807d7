"""Checks on the traced graph of an encoder: the contract, standard operators."""

import onnx_ir as ir

from exporter.structure import GraphError
from serving.encoders.contract import TOKEN_TYPE_IDS, Task, input_names, output_names


def check_encoder_graph(model: ir.Model, task: Task) -> None:
    """Raise GraphError unless the graph has the contract's form.

    That it gives the right numbers is what the parity gate is for: no operator has to be there.
    """
    graph = model.graph
    given = tuple(value.name for value in graph.inputs)
    if given != input_names(task, token_types=TOKEN_TYPE_IDS in given):
        raise GraphError("its inputs are not those of the contract")
    if tuple(value.name for value in graph.outputs) != output_names(task):
        raise GraphError("its outputs are not those of the contract")
    if foreign := {node.domain for node in graph} - {"", "ai.onnx"}:
        raise GraphError(f"operators outside the ONNX standard: {', '.join(sorted(foreign))}")
    for value in graph.inputs:
        if not value.uses():
            raise GraphError(f"its input {value.name} is used nowhere")
