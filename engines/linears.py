"""Finding the linear layers of a standard graph: MatMul of activations with a weight."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.passes.sizes import static_size

# Metadata of a MatMul that several linear layers were merged into.
_MODULES = "modules"


@dataclass(frozen=True)
class Linear:
    """One MatMul with a weight; two of them may share it, and a Gather too when it is tied."""

    matmul: ir.Node
    weight: ir.Value
    """The initialiser."""
    dequantize: ir.Node | None
    """The DequantizeLinear between the two, where the weight is quantised already."""
    transposed: bool
    """Whether the initialiser is [out, in] with a Transpose behind it, and not [in, out]."""

    @property
    def name(self) -> str:
        """The checkpoint's name of the weight."""
        assert self.weight.name is not None
        return self.weight.name

    @property
    def modules(self) -> dict[str, int]:
        """The output channels of each module of the checkpoint that this is, in their order."""
        if _MODULES in self.matmul.metadata_props:
            modules: dict[str, int] = json.loads(self.matmul.metadata_props[_MODULES])
            return modules
        return {self.name.removesuffix(".weight"): self.outputs}

    @property
    def source(self) -> ir.Value:
        """The activations [..., in]."""
        value = self.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return static_size(self.weight, 1 if self.transposed else 0)

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return static_size(self.weight, 0 if self.transposed else 1)

    def array(self) -> npt.NDArray[np.float32]:
        """A float weight as float32 [out, in]."""
        tensor = self.weight.const_value
        assert tensor is not None
        array = tensor.numpy().astype(np.float32, copy=False)
        return array if self.transposed else array.T


def remember_modules(matmul: ir.Node, modules: Mapping[str, int]) -> None:
    """Note which modules were merged into a MatMul, with their output channels: see Linear."""
    matmul.metadata_props[_MODULES] = json.dumps(modules)


def find_linears(model: ir.Model) -> Iterator[Linear]:
    """Every MatMul with a weight of two dimensions, in the graph's order."""
    for node in model.graph:
        if node.op_type == "MatMul" and node.domain == "":
            linear = as_linear(node)
            if linear is not None:
                yield linear


def as_linear(matmul: ir.Node) -> Linear | None:
    """What a MatMul is, if it multiplies with a weight of two dimensions."""
    value, transposed = matmul.inputs[1], False
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose":
        if list(producer.attributes.get_ints("perm", [])) != [1, 0]:
            return None
        value, transposed = producer.inputs[0], True
        producer = value.producer() if value is not None else None
    dequantize = producer if producer is not None else None
    if dequantize is not None:
        if dequantize.op_type != "DequantizeLinear":
            return None
        value = dequantize.inputs[0]
    if value is None or not value.is_initializer() or value.shape is None or len(value.shape) != 2:
        return None
    return Linear(matmul, value, dequantize, transposed)
