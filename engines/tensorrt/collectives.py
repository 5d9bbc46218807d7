"""The sums over the ranks of a tensor-parallel graph, as TensorRT's collective layers.

The parser reads an AllReduce node as the identity that the graph defines it as. A collective layer
is put in front of it; without one the engine would take a rank's part for the sum.
"""

from typing import Any

import onnx_ir as ir

from engines.passes.all_reduce import all_reduces, ranks_of
from engines.tensorrt.network import Network, name_of
from engines.tensorrt.tensors import VerificationError
from serving.errors import UserError

_NO_ROOT = -1  # every rank gets the sum


def add_collectives(network: Network, model: ir.Model) -> None:
    """Let all ranks' parts be summed where ``model``, a rank's graph, has an AllReduce node.

    Raises UserError if TensorRT refuses the layer.
    """
    library = network.library
    identities = {layer.get_output(0).name: layer for layer in network.layers("IDENTITY")}
    for node in all_reduces(model):
        identity = identities.get(name_of(node.outputs[0]))
        if identity is None:
            raise UserError(f"TensorRT has no layer for the node {node.name!r}.")
        collective = network.definition.add_dist_collective(
            identity.get_input(0),
            library.CollectiveOperation.ALL_REDUCE,
            library.ReduceOperation.SUM,
            _NO_ROOT,
            None,  # all ranks of the communicator
        )
        if collective is None:
            raise UserError(f"TensorRT can't sum over ranks at the node {node.name!r}.")
        collective.num_ranks = ranks_of(node)
        collective.name = node.name
        collective.metadata = f"[ONNX Layer: {node.name}]"  # as the parser writes it
        identity.set_input(0, collective.get_output(0))


def verify_collectives(network: Network, model: ir.Model, producers: dict[str, Any]) -> None:
    """Every AllReduce node has its layer over its ranks, and there is no other.

    TensorRT doesn't tell which operation a layer is of. Raises VerificationError.
    """
    nodes = {str(node.name): node for node in all_reduces(model)}
    names = [layer.name for layer in network.layers("DIST_COLLECTIVE")]
    if wrong := sorted({*names} ^ {*nodes}):
        raise VerificationError(f"the sum over ranks {wrong[0]!r} is not in both")
    for name, node in nodes.items():
        identity = producers[name_of(node.outputs[0])]
        layer, where = producers.get(identity.get_input(0).name), f"the sum over ranks {name!r}"
        if layer is None or layer.type.name != "DIST_COLLECTIVE" or layer.name != name:
            raise VerificationError(f"{where} isn't what its readers get")
        if layer.num_ranks != ranks_of(node):
            raise VerificationError(
                f"{where} is over {layer.num_ranks} ranks, not {ranks_of(node)}"
            )
        if (got := layer.get_input(0).name) != (asked := name_of(node.inputs[0])):
            raise VerificationError(f"{where} is of {got!r}, not {asked!r}")
