"""What a TensorRT network computes, in numpy, without a GPU.

``interpret`` evaluates a parsed and mended network layer by layer from the network's own attributes
and tensors, never from the graph that it came from. Sources of what a layer means: NvInfer.h and
the operator pages of NVIDIA's TensorRT documentation.
"""

from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from engines.tensorrt.network import Network
from tests.engines.tensorrt.interpreter import arithmetic, attention, quantization, shapes
from tests.engines.tensorrt.interpreter.values import Array, Evaluators, checked, widened

EVALUATORS: Evaluators = {
    **shapes.EVALUATORS,
    **arithmetic.EVALUATORS,
    **attention.EVALUATORS,
    **quantization.EVALUATORS,
}


def interpret(network: Network, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The network's outputs for these inputs, by name.

    As on a device, a cache that is updated in place is: its past in ``feeds`` is its present.
    """
    values = {name: checked(feeds[name], tensor) for name, tensor in _inputs(network).items()}
    for layer in _needed_layers(network):
        operands = [layer.get_input(i) for i in range(layer.num_inputs)]
        arrays = [None if tensor is None else values[tensor.name] for tensor in operands]
        results = _evaluate(network, layer, arrays)
        for i, result in enumerate(results):
            tensor = layer.get_output(i)
            values[tensor.name] = checked(result, tensor)
    return {name: values[name] for name in _outputs(network)}


def _evaluate(network: Network, layer: Any, arrays: list[Array | None]) -> tuple[Array, ...]:
    kind = _kind(network, layer)
    if kind not in EVALUATORS:
        raise NotImplementedError(f"a layer of type {kind}")
    interface, evaluate = EVALUATORS[kind]
    layer.__class__ = getattr(network.library, interface)
    with np.errstate(all="ignore"):
        result = evaluate(layer, *map(widened, arrays))
    return result if isinstance(result, tuple) else (result,)


def _kind(network: Network, layer: Any) -> str:
    """Its LayerType's name; of an activation ``layer.type`` is the function."""
    kind: str = network.library.ILayer.type.__get__(layer).name
    return kind


def _needed_layers(network: Network) -> list[Any]:
    """The layers that outputs are computed from, each after those that it reads."""
    producers: dict[str, Any] = {}
    for index in range(network.definition.num_layers):
        layer = network.definition.get_layer(index)
        for i in range(layer.num_outputs):
            name = layer.get_output(i).name
            if producers.setdefault(name, layer) is not layer:
                raise ValueError(f"two tensors are called {name!r}")
    sources: dict[str, list[str]] = {}
    waiting = list(_outputs(network))
    while waiting:
        name = waiting.pop()
        if name in producers and name not in sources:
            layer = producers[name]
            operands = (layer.get_input(i) for i in range(layer.num_inputs))
            sources[name] = [tensor.name for tensor in operands if tensor is not None]
            waiting += sources[name]
    order = (producers[n] for n in TopologicalSorter(sources).static_order() if n in producers)
    return list({id(layer): layer for layer in order}.values())


def _inputs(network: Network) -> dict[str, Any]:
    tensors = map(network.definition.get_input, range(network.definition.num_inputs))
    return {tensor.name: tensor for tensor in tensors}


def _outputs(network: Network) -> dict[str, Any]:
    tensors = map(network.definition.get_output, range(network.definition.num_outputs))
    return {tensor.name: tensor for tensor in tensors}
